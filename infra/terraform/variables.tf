variable "project" {
  type        = string
  description = "Google Cloud project id."
}

variable "regions" {
  type        = list(string)
  description = "Regions that run workers. The first one is pushed to; see docs/regions.md for more than one."
  validation {
    condition     = length(var.regions) > 0
    error_message = "Name at least one region."
  }
}

variable "app" {
  type        = string
  description = "The app as celery -A takes it, such as shop.tasks. The container gets it as APP."
}

# --- the worker ------------------------------------------------------------------------------------

variable "gwi_worker_mode" {
  type        = string
  default     = "push"
  description = "push: a Cloud Run service that Pub/Sub posts to. pull: a Cloud Run worker pool."
  validation {
    condition     = contains(["push", "pull"], var.gwi_worker_mode)
    error_message = "Write push or pull."
  }
}

variable "gwi_worker_image" {
  type        = string
  default     = ""
  description = "Container image, by digest. Empty: everything but the workers is created."
}

variable "gwi_worker_name" {
  type        = string
  default     = "gwi-worker"
  description = "Name of the Cloud Run service or worker pool, and beginning of the service accounts' names."
}

variable "gwi_worker_min_instances" {
  type        = number
  default     = 0
  description = "push: instances that always run. pull: instances until an autoscaler sets another number."
}

variable "gwi_worker_max_instances" {
  type        = number
  default     = 10
  description = "push: most instances in each region. pull: the same, for the autoscaler (infra/autoscaling)."
}

variable "gwi_worker_concurrency" {
  type        = number
  default     = 1
  description = "Jobs that one instance runs at a time."
}

variable "gwi_worker_cpu" {
  type        = string
  default     = "1"
  description = "CPUs of an instance."
}

variable "gwi_worker_memory" {
  type        = string
  default     = "1Gi"
  description = "Memory of an instance; prefork needs about 180 MB and what the jobs need."
}

variable "gwi_push_auth" {
  type        = string
  default     = "iam"
  description = "How the service checks push tokens. Cloud Run's IAM, which is used here, removes their signature: iam checks everything else."
}

variable "env" {
  type        = map(string)
  default     = {}
  description = "More environment variables of the workers, such as GWI_LOCK_TTL."
}

variable "secrets" {
  type        = map(object({ secret = string, version = string }))
  default     = {}
  description = "Environment variable -> secret in Secret Manager and its version, such as GWI_SERVICE_TOKEN."
}

# --- the queue -------------------------------------------------------------------------------------

variable "queue" {
  type        = string
  default     = "celery"
  description = "The Celery queue whose topic and subscription these are."
}

variable "gwi_worker_topic" {
  type        = string
  default     = "gwi-worker-jobs"
  description = "The queue's topic. Its dead letter has the same name with -dead."
}

variable "gwi_worker_subscription" {
  type        = string
  default     = "gwi-worker-push-sub"
  description = "The queue's subscription, pushed or pulled."
}

variable "lease_seconds" {
  type        = number
  default     = 30
  description = "pull: how long a killed worker's message waits. A push subscription has 600, the longest that a request may take."
}

variable "retry_policy" {
  type        = object({ minimum = number, maximum = number })
  default     = { minimum = 10, maximum = 600 }
  description = "Seconds that Pub/Sub waits after a refusal. Used for push; pull workers pace themselves."
}

variable "exactly_once" {
  type        = bool
  default     = false
  description = "pull: exactly-once delivery. It holds within one region, so workers use that region's endpoint."
}

variable "ordering" {
  type        = bool
  default     = false
  description = "Deliver messages of one tenant and run in the order in which they were published."
}

variable "message_storage_regions" {
  type        = list(string)
  default     = []
  description = "Regions in which messages may be kept. Empty: any that the organization allows."
}

variable "kms_key" {
  type        = string
  default     = null
  description = "Key that topics, workers and Redis are encrypted with: projects/P/locations/L/keyRings/R/cryptoKeys/K."
}

# --- who may do what -------------------------------------------------------------------------------

variable "callers" {
  type        = list(string)
  default     = []
  description = "Members who call tasks, such as serviceAccount:web@P.iam.gserviceaccount.com."
}

variable "deployers" {
  type        = list(string)
  default     = []
  description = "Members who change the push subscription without being owners: they need actAs on the pusher."
}

variable "autoscalers" {
  type        = list(string)
  default     = []
  description = "pull: members who set the number of workers: KEDA's or CREMA's service account (infra/autoscaling)."
}

variable "grant_token_creator" {
  type        = bool
  default     = false
  description = "For projects whose Pub/Sub service agent is older than April 2021."
}

# --- the store -------------------------------------------------------------------------------------

variable "create_database" {
  type        = bool
  default     = true
  description = "Create the Firestore database. false: it exists already."
}

variable "firestore_database" {
  type        = string
  default     = "(default)"
  description = "Database id."
}

variable "firestore_location" {
  type        = string
  default     = null
  description = "Location of the database; by default the first region. With several regions name a multi-region: eur3 or nam5."
}

variable "firestore_prefix" {
  type        = string
  default     = "gwi"
  description = "Root collection of the jobs."
}

variable "firestore_kms_key" {
  type        = string
  default     = null
  description = "Key that the database is encrypted with; it must be in the database's location."
}

# --- beside it -------------------------------------------------------------------------------------

variable "create_network" {
  type        = bool
  default     = false
  description = "Create a VPC with a subnet in each region, through which workers send their private traffic."
}

variable "network" {
  type        = string
  default     = null
  description = "An existing VPC instead."
}

variable "subnetworks" {
  type        = map(string)
  default     = {}
  description = "Region -> its subnet in that VPC."
}

variable "enable_redis" {
  type        = bool
  default     = false
  description = "Memorystore for Redis, for rate limits. Needs a VPC."
}

variable "notification_channels" {
  type        = list(string)
  default     = []
  description = "Cloud Monitoring channels that receive alerts. Empty: the alerts exist, and notify nobody."
}

variable "enable_monitoring" {
  type        = bool
  default     = true
  description = "Dashboard, log-based metrics and alerts."
}

variable "deletion_protection" {
  type        = bool
  default     = true
  description = "Refuse to delete the database, services and Redis."
}

variable "labels" {
  type        = map(string)
  default     = {}
  description = "Labels of every resource that takes labels."
}
