"""What a gRPC client needs in a process that forks: written once, for Pub/Sub and for Firestore."""
