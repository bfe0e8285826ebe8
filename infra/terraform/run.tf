resource "google_cloud_run_v2_service" "worker" {
  for_each            = local.push ? local.regions : toset([])
  project             = var.project
  name                = var.gwi_worker_name
  location            = each.value
  ingress             = "INGRESS_TRAFFIC_INTERNAL_ONLY" # Pub/Sub of the same project counts as internal
  custom_audiences    = [local.audience]
  deletion_protection = var.deletion_protection
  labels              = var.labels

  template {
    service_account                  = google_service_account.worker.email
    timeout                          = "600s" # the longest that Pub/Sub waits for an answer
    max_instance_request_concurrency = var.gwi_worker_concurrency
    encryption_key                   = var.kms_key

    scaling {
      min_instance_count = var.gwi_worker_min_instances
      max_instance_count = var.gwi_worker_max_instances
    }

    containers {
      image = var.gwi_worker_image
      args  = ["gwi", "serve"]

      ports {
        container_port = 8080
      }

      resources {
        # After a 503 a job runs on, and leases are renewed between requests: the CPU must not be taken away.
        cpu_idle          = false
        startup_cpu_boost = true
        limits = {
          cpu    = var.gwi_worker_cpu
          memory = var.gwi_worker_memory
        }
      }

      startup_probe {
        period_seconds    = 2
        timeout_seconds   = 2
        failure_threshold = 60
        http_get {
          path = "/health"
          port = 8080
        }
      }

      liveness_probe {
        period_seconds    = 30
        timeout_seconds   = 5
        failure_threshold = 4
        http_get {
          path = "/health"
          port = 8080
        }
      }

      readiness_probe {
        period_seconds    = 10
        timeout_seconds   = 5
        failure_threshold = 3
        success_threshold = 1
        http_get {
          path = "/ready"
          port = 8080
        }
      }

      dynamic "env" {
        for_each = local.worker_env
        content {
          name  = env.key
          value = env.value
        }
      }

      dynamic "env" {
        for_each = local.secrets
        content {
          name = env.key
          value_source {
            secret_key_ref {
              secret  = env.value.secret
              version = env.value.version
            }
          }
        }
      }
    }

    dynamic "vpc_access" {
      for_each = local.in_a_vpc ? [each.value] : []
      content {
        egress = "PRIVATE_RANGES_ONLY"
        network_interfaces {
          network    = local.network
          subnetwork = local.subnetworks[vpc_access.value]
        }
      }
    }
  }

  depends_on = [
    google_project_service.apis,
    google_project_iam_member.worker_store,
    google_secret_manager_secret_iam_member.worker_reads,
    google_secret_manager_secret_iam_member.worker_reads_limits,
    google_kms_crypto_key_iam_member.run,
  ]
}

resource "google_cloud_run_v2_worker_pool" "worker" {
  for_each            = local.push ? toset([]) : local.regions
  project             = var.project
  name                = var.gwi_worker_name
  location            = each.value
  deletion_protection = var.deletion_protection
  labels              = var.labels

  scaling {
    manual_instance_count = var.gwi_worker_min_instances
  }

  template {
    service_account = google_service_account.worker.email
    encryption_key  = var.kms_key

    containers {
      image = var.gwi_worker_image
      args  = ["worker", "--concurrency", tostring(var.gwi_worker_concurrency), "--queues", var.queue, "--loglevel", "INFO"]

      resources {
        limits = {
          cpu    = var.gwi_worker_cpu
          memory = var.gwi_worker_memory
        }
      }

      startup_probe {
        period_seconds    = 2
        timeout_seconds   = 2
        failure_threshold = 60
        http_get {
          path = "/health"
          port = 8080
        }
      }

      liveness_probe {
        period_seconds    = 30
        timeout_seconds   = 5
        failure_threshold = 4
        http_get {
          path = "/health"
          port = 8080
        }
      }

      dynamic "env" {
        for_each = local.worker_env
        content {
          name  = env.key
          value = env.value
        }
      }

      dynamic "env" {
        for_each = local.secrets
        content {
          name = env.key
          value_source {
            secret_key_ref {
              secret  = env.value.secret
              version = env.value.version
            }
          }
        }
      }
    }

    dynamic "vpc_access" {
      for_each = local.in_a_vpc ? [each.value] : []
      content {
        egress = "PRIVATE_RANGES_ONLY"
        network_interfaces {
          network    = local.network
          subnetwork = local.subnetworks[vpc_access.value]
        }
      }
    }
  }

  # An autoscaler changes it (infra/autoscaling); a later apply leaves its number alone.
  lifecycle {
    ignore_changes = [scaling[0].manual_instance_count]
  }

  depends_on = [
    google_project_service.apis,
    google_project_iam_member.worker_store,
    google_pubsub_subscription_iam_member.worker_subscribes,
    google_secret_manager_secret_iam_member.worker_reads,
    google_secret_manager_secret_iam_member.worker_reads_limits,
    google_kms_crypto_key_iam_member.run,
  ]
}
