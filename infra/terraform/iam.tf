resource "google_service_account" "worker" {
  project      = var.project
  account_id   = var.gwi_worker_name
  display_name = "Runs jobs"
}

resource "google_service_account" "pusher" {
  count        = local.push ? 1 : 0
  project      = var.project
  account_id   = "${var.gwi_worker_name}-pusher"
  display_name = "Signs Pub/Sub's push requests; may invoke the worker's service, and nothing else"
}

# --- workers ---------------------------------------------------------------------------------------

resource "google_project_iam_member" "worker_store" {
  project = var.project
  role    = "roles/datastore.user"
  member  = local.worker
}

resource "google_pubsub_subscription_iam_member" "worker_subscribes" {
  for_each = {
    jobs  = google_pubsub_subscription.jobs.name
    dead  = google_pubsub_subscription.dead.name
    later = google_pubsub_subscription.later.name
  }
  project      = var.project
  subscription = each.value
  role         = "roles/pubsub.subscriber"
  member       = local.worker
}

# Retries and copies go back to the queue, what is given up to the dead letter.
resource "google_pubsub_topic_iam_member" "worker_publishes" {
  for_each = {
    jobs  = google_pubsub_topic.jobs.name
    dead  = google_pubsub_topic.dead.name
    later = google_pubsub_topic.later.name
  }
  project  = var.project
  topic    = each.value
  role     = "roles/pubsub.publisher"
  member   = local.worker
}

# --- callers ---------------------------------------------------------------------------------------

resource "google_pubsub_topic_iam_member" "caller_publishes" {
  for_each = toset(var.callers)
  project  = var.project
  topic    = google_pubsub_topic.jobs.name
  role     = "roles/pubsub.publisher"
  member   = each.value
}

# To read results.
resource "google_project_iam_member" "caller_store" {
  for_each = toset(var.callers)
  project  = var.project
  role     = "roles/datastore.user"
  member   = each.value
}

# --- Pub/Sub's service agent: its own dead lettering, and tokens ------------------------------------

resource "google_pubsub_topic_iam_member" "agent_publishes_dead" {
  project = var.project
  topic   = google_pubsub_topic.dead.name
  role    = "roles/pubsub.publisher"
  member  = local.agent
}

resource "google_pubsub_subscription_iam_member" "agent_acks" {
  project      = var.project
  subscription = google_pubsub_subscription.jobs.name
  role         = "roles/pubsub.subscriber"
  member       = local.agent
}

resource "google_service_account_iam_member" "agent_makes_tokens" {
  count              = local.push && var.grant_token_creator ? 1 : 0
  service_account_id = google_service_account.pusher[0].name
  role               = "roles/iam.serviceAccountTokenCreator"
  member             = local.agent
}

# --- push ------------------------------------------------------------------------------------------

resource "google_cloud_run_v2_service_iam_member" "pusher" {
  for_each = local.push ? local.regions : toset([])
  project  = var.project
  location = each.value
  name     = google_cloud_run_v2_service.worker[each.value].name
  role     = "roles/run.invoker"
  member   = "serviceAccount:${local.pusher}"
}

resource "google_service_account_iam_member" "act_as_pusher" {
  for_each           = toset(local.push ? var.deployers : [])
  service_account_id = google_service_account.pusher[0].name
  role               = "roles/iam.serviceAccountUser"
  member             = each.value
}

# --- autoscaling of pull workers -------------------------------------------------------------------

resource "google_project_iam_member" "autoscaler_reads_depths" {
  for_each = toset(local.push ? [] : var.autoscalers)
  project  = var.project
  role     = "roles/monitoring.viewer"
  member   = each.value
}

resource "google_cloud_run_v2_worker_pool_iam_member" "autoscaler_scales" {
  for_each = { for pair in setproduct(local.push ? [] : var.autoscalers, local.regions) : join(" ", pair) => pair }
  project  = var.project
  location = each.value[1]
  name     = google_cloud_run_v2_worker_pool.worker[each.value[1]].name
  role     = "roles/run.developer"
  member   = each.value[0]
}

resource "google_service_account_iam_member" "autoscaler_acts_as_worker" {
  for_each           = toset(local.push ? [] : var.autoscalers)
  service_account_id = google_service_account.worker.name
  role               = "roles/iam.serviceAccountUser"
  member             = each.value
}

# --- secrets and keys ------------------------------------------------------------------------------

resource "google_secret_manager_secret_iam_member" "worker_reads" {
  for_each  = var.secrets
  project   = var.project
  secret_id = each.value.secret
  role      = "roles/secretmanager.secretAccessor"
  member    = local.worker
}

resource "google_kms_crypto_key_iam_member" "pubsub" {
  count         = var.kms_key == null ? 0 : 1
  crypto_key_id = var.kms_key
  role          = "roles/cloudkms.cryptoKeyEncrypterDecrypter"
  member        = local.agent
}

resource "google_kms_crypto_key_iam_member" "run" {
  count         = var.kms_key == null ? 0 : 1
  crypto_key_id = var.kms_key
  role          = "roles/cloudkms.cryptoKeyEncrypterDecrypter"
  member        = "serviceAccount:service-${data.google_project.this.number}@serverless-robot-prod.iam.gserviceaccount.com"
}
