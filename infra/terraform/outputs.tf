output "settings" {
  description = "Environment variables of callers, with which they reach the queue and the results."
  value       = local.settings
}

output "worker_service_account" {
  description = "Service account that the workers run as."
  value       = google_service_account.worker.email
}

output "pusher_service_account" {
  description = "Service account that signs push requests; null for pull."
  value       = local.pusher
}

output "push_endpoints" {
  description = "Region -> endpoint that Pub/Sub may push to. To switch regions: gcloud pubsub subscriptions modify-push-config."
  value       = { for region, service in google_cloud_run_v2_service.worker : region => "${service.uri}/push" }
}

output "topic" {
  description = "Topic to which callers publish."
  value       = google_pubsub_topic.jobs.id
}

output "redis" {
  description = "host:port of Redis, its password and its certificates; null without it."
  value = var.enable_redis ? {
    address  = "${google_redis_instance.limits[0].host}:${google_redis_instance.limits[0].port}"
    password = google_redis_instance.limits[0].auth_string
    ca_certs = google_redis_instance.limits[0].server_ca_certs[*].cert
  } : null
  sensitive = true
}
