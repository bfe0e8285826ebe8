"""The Pub/Sub emulator as a broker: a container of Docker's, or a process."""
