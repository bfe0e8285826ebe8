"""The Firestore emulator as a result backend: a container of Docker's, or a process."""
