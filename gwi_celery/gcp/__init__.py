"""What a gRPC client needs in a process that forks, for Pub/Sub and Firestore alike."""
