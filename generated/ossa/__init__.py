"""Import root of the generated protobuf packages."""
