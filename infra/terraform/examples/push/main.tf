# A service on Cloud Run that Pub/Sub posts jobs to. It scales to zero.

variable "project" {
  type        = string
  description = "Google Cloud project id."
}

variable "image" {
  type        = string
  default     = ""
  description = "Image of the app, by digest. Apply without it first, push the image, and apply again."
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
  regions = ["europe-west1"]
  app     = "shop.tasks"

  gwi_worker_image         = var.image
  gwi_worker_max_instances = 10
  gwi_worker_concurrency   = 1
  callers                  = ["serviceAccount:web@${var.project}.iam.gserviceaccount.com"]
}

output "settings" {
  description = "Environment of the web application."
  value       = module.gwi.settings
}
