"""Authentication, authorisation, limits, TLS and egress rules, independent of gRPC and HTTP."""
