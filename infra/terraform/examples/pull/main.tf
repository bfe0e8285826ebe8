# Worker pools in two regions on one subscription, with Firestore in a multi-region: docs/regions.md.

variable "project" {
  type        = string
  description = "Google Cloud project id."
}

variable "image" {
  type        = string
  default     = ""
  description = "Image of the app, by digest."
}

provider "google" {
  project = var.project
}

provider "google-beta" {
  project = var.project
}

module "gwi" {
  source  = "../.."
  project = var.project
  regions = ["europe-west1", "europe-west4"]
  app     = "shop.tasks"

  gwi_worker_mode          = "pull"
  gwi_worker_image         = var.image
  gwi_worker_subscription  = "gwi-worker-pull-sub"
  gwi_worker_min_instances = 1
  gwi_worker_max_instances = 20
  gwi_worker_concurrency   = 4
  firestore_location       = "eur3"
  message_storage_regions  = ["europe-west1", "europe-west4"]
  create_network           = true
  enable_redis             = true
  callers                  = ["serviceAccount:web@${var.project}.iam.gserviceaccount.com"]
  autoscalers              = ["serviceAccount:crema@${var.project}.iam.gserviceaccount.com"]
  secrets                  = { GWI_SERVICE_TOKEN = { secret = "gwi-service-token", version = "1" } }
}

output "settings" {
  description = "Environment of the web application."
  value       = module.gwi.settings
}
