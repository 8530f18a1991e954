"""Who calls, what they may do, and how much of it; TLS. Knows neither gRPC nor HTTP: the transports ask."""
