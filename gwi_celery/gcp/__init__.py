"""What the gRPC clients of Pub/Sub and Firestore share: channels, credentials, and safety at forks."""
