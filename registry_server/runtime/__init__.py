"""Process plumbing that is independent of services: clock, tasks, frames between processes, thread scheduling."""
