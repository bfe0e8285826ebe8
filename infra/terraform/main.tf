# What an app on gwi_celery needs of Google Cloud, with the least rights: nothing is made at run time
# (mode=provisioned), so that workers need no admin role. docs/deploy.md says what was tried, and what wasn't.
#
# Names, indexes, roles and settings are the library's own: tests/infra compares them with gwi_celery.deployment.

locals {
  push      = var.gwi_worker_mode == "push"
  deploy    = var.gwi_worker_image != ""
  regions   = toset(local.deploy ? var.regions : [])
  dead      = "${var.gwi_worker_topic}-dead"
  later     = "${var.gwi_worker_topic}-later"
  lease     = local.push ? 600 : var.lease_seconds
  agent     = "serviceAccount:${google_project_service_identity.pubsub.email}"
  worker    = "serviceAccount:${google_service_account.worker.email}"
  pusher    = one(google_service_account.pusher[*].email) # null for pull
  audience  = "https://${var.gwi_worker_name}.gwi.invalid" # any text that only this service and its pusher share
  indexes   = jsondecode(file("${path.module}/../../gwi_celery/firestore/firestore.indexes.json"))
  in_a_vpc  = var.create_network || var.network != null
  regional  = var.exactly_once || var.ordering
  endpoint  = local.regional ? "${var.regions[0]}-pubsub.googleapis.com/" : ""
  overrides = { for f in local.indexes.fieldOverrides : "${f.collectionGroup}.${f.fieldPath}" => f }

  queues = {
    (var.queue)          = { topic = var.gwi_worker_topic, subscription = var.gwi_worker_subscription, dead_letter_topic = local.dead }
    "${var.queue}.dead"  = { topic = local.dead, subscription = local.dead }
    "${var.queue}.later" = { topic = local.later, subscription = local.later }
  }
  broker_options = join("&", [
    "mode=provisioned",
    "lease_seconds=${local.lease}",
    "exactly_once=${!local.push && var.exactly_once}",
    "ordering=${var.ordering}",
    "queues=${urlencode(jsonencode(local.queues))}",
  ])

  # Callers need the first four; workers all of it.
  settings = {
    GCP_PROJECT_ID = var.project
    GWI_BROKER_URL = "pubsub://${local.endpoint}${var.project}?${local.broker_options}"
    GWI_STORE_URL  = "firestore://${var.project}/${var.firestore_prefix}?database=${urlencode(var.firestore_database)}"
    GWI_LOG_FORMAT = "json"
  }
  push_settings = {
    GWI_PUSH_AUTH            = var.gwi_push_auth
    GWI_PUSH_AUDIENCE        = local.audience
    GWI_PUSH_SERVICE_ACCOUNT = local.pusher
    GWI_PUSH_CONCURRENCY     = tostring(var.gwi_worker_concurrency)
    GWI_PUSH_DEADLINE        = "600"
    GWI_PUSH_QUEUE           = var.queue
  }
  pull_settings = {
    GWI_WORKER_GRACE = "8" # Cloud Run kills after ten seconds
    PORT             = "8080"
  }
  worker_env = merge(local.settings, local.push ? local.push_settings : local.pull_settings, { APP = var.app }, var.env)
}

data "google_project" "this" {
  project_id = var.project
}

resource "google_project_service" "apis" {
  for_each           = toset(["pubsub.googleapis.com", "firestore.googleapis.com", "run.googleapis.com", "monitoring.googleapis.com"])
  project            = var.project
  service            = each.value
  disable_on_destroy = false
}

resource "google_project_service_identity" "pubsub" {
  provider = google-beta
  project  = var.project
  service  = "pubsub.googleapis.com"

  depends_on = [google_project_service.apis]
}
