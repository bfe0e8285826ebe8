resource "google_pubsub_topic" "jobs" {
  project      = var.project
  name         = var.gwi_worker_topic
  kms_key_name = var.kms_key
  labels       = var.labels

  dynamic "message_storage_policy" {
    for_each = length(var.message_storage_regions) > 0 ? [var.message_storage_regions] : []
    content {
      allowed_persistence_regions = message_storage_policy.value
    }
  }

  depends_on = [google_project_service.apis, google_kms_crypto_key_iam_member.pubsub]
}

resource "google_pubsub_topic" "dead" {
  project      = var.project
  name         = local.dead
  kms_key_name = var.kms_key
  labels       = var.labels

  dynamic "message_storage_policy" {
    for_each = length(var.message_storage_regions) > 0 ? [var.message_storage_regions] : []
    content {
      allowed_persistence_regions = message_storage_policy.value
    }
  }

  depends_on = [google_project_service.apis, google_kms_crypto_key_iam_member.pubsub]
}

resource "google_pubsub_subscription" "jobs" {
  project                      = var.project
  name                         = var.gwi_worker_subscription
  topic                        = google_pubsub_topic.jobs.id
  ack_deadline_seconds         = local.lease
  message_retention_duration   = "604800s"
  enable_message_ordering      = var.ordering
  enable_exactly_once_delivery = !local.push && var.exactly_once
  labels                       = var.labels

  expiration_policy {
    ttl = "" # never: a queue that is idle for a month is still a queue
  }

  # The last resort. Workers give up earlier (max_deliveries), with the reason; without this policy Pub/Sub
  # counts no deliveries.
  dead_letter_policy {
    dead_letter_topic     = google_pubsub_topic.dead.id
    max_delivery_attempts = 100
  }

  dynamic "retry_policy" {
    for_each = local.push ? [var.retry_policy] : []
    content {
      minimum_backoff = "${retry_policy.value.minimum}s"
      maximum_backoff = "${retry_policy.value.maximum}s"
    }
  }

  dynamic "push_config" {
    for_each = local.push && local.deploy ? [google_cloud_run_v2_service.worker[var.regions[0]].uri] : []
    content {
      push_endpoint = "${push_config.value}/push"
      oidc_token {
        service_account_email = local.pusher
        audience              = local.audience
      }
    }
  }

  # Whoever applies this needs actAs on the pusher: an owner or editor has it, others see var.deployers.
  depends_on = [
    google_service_account_iam_member.act_as_pusher,
    google_cloud_run_v2_service_iam_member.pusher,
    google_pubsub_topic_iam_member.agent_publishes_dead,
  ]
}

resource "google_pubsub_subscription" "dead" {
  project                    = var.project
  name                       = local.dead
  topic                      = google_pubsub_topic.dead.id
  ack_deadline_seconds       = 30
  message_retention_duration = "2678400s" # 31 days, the longest
  labels                     = var.labels

  expiration_policy {
    ttl = ""
  }
}

# --- what a push service parks until its time: it pulls this one itself ------------------------------

resource "google_pubsub_topic" "later" {
  project      = var.project
  name         = local.later
  kms_key_name = var.kms_key
  labels       = var.labels

  dynamic "message_storage_policy" {
    for_each = length(var.message_storage_regions) > 0 ? [var.message_storage_regions] : []
    content {
      allowed_persistence_regions = message_storage_policy.value
    }
  }

  depends_on = [google_project_service.apis, google_kms_crypto_key_iam_member.pubsub]
}

resource "google_pubsub_subscription" "later" {
  project                    = var.project
  name                       = local.later
  topic                      = google_pubsub_topic.later.id
  ack_deadline_seconds       = 30
  message_retention_duration = "604800s"
  labels                     = var.labels

  expiration_policy {
    ttl = ""
  }
}
