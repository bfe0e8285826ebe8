locals {
  network     = var.create_network ? google_compute_network.jobs[0].id : var.network
  subnetworks = var.create_network ? { for region, s in google_compute_subnetwork.jobs : region => s.id } : var.subnetworks
}

resource "google_compute_network" "jobs" {
  #checkov:skip=CKV2_GCP_18:A network of ours has no rule, so that nothing comes in; workers only go out
  count                   = var.create_network ? 1 : 0
  project                 = var.project
  name                    = var.gwi_worker_name
  auto_create_subnetworks = false
}

resource "google_compute_subnetwork" "jobs" {
  for_each                 = toset(var.create_network ? var.regions : [])
  project                  = var.project
  name                     = "${var.gwi_worker_name}-${each.value}"
  region                   = each.value
  network                  = google_compute_network.jobs[0].id
  ip_cidr_range            = cidrsubnet("10.64.0.0/12", 8, index(var.regions, each.value))
  private_ip_google_access = true

  log_config {
    aggregation_interval = "INTERVAL_10_MIN"
    flow_sampling        = 0.1
    metadata             = "EXCLUDE_ALL_METADATA"
  }
}

# Counters of rate limits: nothing is lost with them, so that one zone is enough.
resource "google_redis_instance" "limits" {
  count                   = var.enable_redis ? 1 : 0
  project                 = var.project
  name                    = "${var.gwi_worker_name}-limits"
  region                  = var.regions[0]
  tier                    = "BASIC"
  memory_size_gb          = 1
  redis_version           = "REDIS_7_2"
  authorized_network      = local.network
  auth_enabled            = true
  transit_encryption_mode = "SERVER_AUTHENTICATION"
  customer_managed_key    = var.kms_key
  deletion_protection     = var.deletion_protection
  labels                  = var.labels

  depends_on = [google_project_service.limits]
}

# The setting limits_url, with the password and the server's certificates in it: so it is a secret. The server is named by its
# address, which its certificate does not have.
locals {
  limits_url = var.enable_redis ? join("", [
    "rediss://:${urlencode(google_redis_instance.limits[0].auth_string)}",
    "@${google_redis_instance.limits[0].host}:${google_redis_instance.limits[0].port}/0",
    "?ssl_check_hostname=false&ssl_ca_data=${urlencode(join("\n", google_redis_instance.limits[0].server_ca_certs[*].cert))}",
  ]) : null
  limits_secrets = var.enable_redis ? {
    GWI_LIMITS_URL = { secret = google_secret_manager_secret.limits[0].secret_id, version = google_secret_manager_secret_version.limits[0].version }
  } : {}
  secrets = merge(local.limits_secrets, var.secrets)
}

resource "google_project_service" "limits" {
  for_each           = toset(var.enable_redis ? ["redis.googleapis.com", "secretmanager.googleapis.com"] : [])
  project            = var.project
  service            = each.value
  disable_on_destroy = false
}

resource "google_secret_manager_secret" "limits" {
  count     = var.enable_redis ? 1 : 0
  project   = var.project
  secret_id = "${var.gwi_worker_name}-limits-url"
  labels    = var.labels

  replication {
    user_managed {
      dynamic "replicas" {
        for_each = local.regions
        content {
          location = replicas.value
        }
      }
    }
  }

  depends_on = [google_project_service.limits]
}

resource "google_secret_manager_secret_version" "limits" {
  count       = var.enable_redis ? 1 : 0
  secret      = google_secret_manager_secret.limits[0].id
  secret_data = local.limits_url
}

resource "google_secret_manager_secret_iam_member" "worker_reads_limits" {
  count     = var.enable_redis ? 1 : 0
  project   = var.project
  secret_id = google_secret_manager_secret.limits[0].secret_id
  role      = "roles/secretmanager.secretAccessor"
  member    = local.worker
}
