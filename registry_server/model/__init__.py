"""The domain model: validation, normal form, filters and encodings of protobuf messages. No transport and no store."""
