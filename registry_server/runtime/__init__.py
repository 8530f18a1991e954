"""Process plumbing that knows nothing of services: clock, tasks, framing between processes, scheduling."""
