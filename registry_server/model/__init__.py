"""The domain: protobuf messages, the rules they obey and the shapes they take. No transport, no store."""
