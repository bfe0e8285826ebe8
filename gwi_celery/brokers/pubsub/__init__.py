"""The broker seam on Google Cloud Pub/Sub."""
