"""Generated protobuf packages of the registry, one a version."""
