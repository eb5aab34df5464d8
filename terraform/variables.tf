# Required variables.

variable "project_id" {
  description = "Id of the Google Cloud project in which all resources are created."
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{4,28}[a-z0-9]$", var.project_id))
    error_message = "project_id must be a project's id (6 to 30 lower-case letters, digits and hyphens), not its name or number."
  }
}

variable "image" {
  description = "Container image of both services and the job, with a tag or digest, so that the deployed version is recorded and the previous one can be restored."
  type        = string

  validation {
    condition     = can(regex("^[a-z0-9.-]+(/[a-z0-9._-]+)+(:[A-Za-z0-9._-]+|(:[A-Za-z0-9._-]+)?@sha256:[0-9a-f]{64})$", var.image)) && !endswith(var.image, ":latest")
    error_message = "image must name a registry, a repository and a tag other than latest, or a digest: us-central1-docker.pkg.dev/PROJECT/segment/segment:1.0.0."
  }
}

# Location and names.

variable "region" {
  description = "Region of all resources. Regions of Cloud Run's price tier 1, such as us-central1 and europe-west1, are the cheapest."
  type        = string
  default     = "us-central1"

  validation {
    condition     = can(regex("^[a-z]+-[a-z]+[0-9]+$", var.region))
    error_message = "region must be a region such as us-central1, not a zone or a multi-region."
  }
}

variable "name" {
  description = "Prefix of all resource names. A different name creates a second, independent deployment."
  type        = string
  default     = "segment"

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{0,18}[a-z0-9]$", var.name))
    error_message = "name must have 2 to 20 lower-case letters, digits and hyphens, start with a letter and not end with a hyphen."
  }
  validation {
    condition     = !strcontains(var.name, "goog")
    error_message = "name must not contain goog: Pub/Sub and Cloud Storage reserve such names."
  }
}

variable "labels" {
  description = "Labels of all resources that support them."
  type        = map(string)
  default     = {}

  validation {
    condition     = alltrue([for key, value in var.labels : can(regex("^[a-z][a-z0-9_-]{0,62}$", key)) && can(regex("^[a-z0-9_-]{0,63}$", value))])
    error_message = "labels must consist of up to 63 lower-case letters, digits, hyphens and underscores; keys must start with a letter."
  }
}

variable "enable_apis" {
  description = "Enable the required APIs of the project. They stay enabled after `terraform destroy`."
  type        = bool
  default     = true
}

variable "create_repository" {
  description = "Create an Artifact Registry repository for the image; false if the image is stored elsewhere. To read it from another project, Cloud Run's service agent (service-NUMBER@serverless-robot-prod.iam.gserviceaccount.com) needs roles/artifactregistry.reader there."
  type        = bool
  default     = true
}

variable "keep_images" {
  description = "Number of images that the repository keeps, each of which can be rolled back to."
  type        = number
  default     = 10

  validation {
    condition     = var.keep_images >= 1 && var.keep_images <= 1000 && floor(var.keep_images) == var.keep_images
    error_message = "keep_images must be a whole number from 1 to 1000."
  }
}

variable "kms_key" {
  description = "Key of Cloud KMS (CMEK) that encrypts the buckets, the topics, the repository, the services and the job: projects/PROJECT/locations/REGION/keyRings/RING/cryptoKeys/KEY, in the same region. Null: Google's keys. Set it before the first apply: an existing repository would be replaced, with its images."
  type        = string
  default     = null

  validation {
    condition     = var.kms_key == null ? true : can(regex("^projects/[^/]+/locations/[^/]+/keyRings/[^/]+/cryptoKeys/[^/]+$", var.kms_key))
    error_message = "kms_key must be the name of a key, without a version: projects/PROJECT/locations/REGION/keyRings/RING/cryptoKeys/KEY."
  }
  validation {
    condition     = var.kms_key == null ? true : strcontains(var.kms_key, "/locations/${var.region}/")
    error_message = "kms_key must be in the region ${var.region}: buckets, the repository, services and the job only accept a key of their own region."
  }
}

variable "grant_kms_key" {
  description = "Let the service agents use kms_key, which requires permission to grant roles on it; false if whoever administers the key grants them roles/cloudkms.cryptoKeyEncrypterDecrypter before the first apply."
  type        = bool
  default     = true
}

# Size of an instance. The rules are those of Cloud Run:
# https://cloud.google.com/run/docs/configuring/services/memory-limits and .../cpu

variable "memory_mib" {
  description = "Memory of an instance in MiB. 512 is enough for an int8 Mask R-CNN R50-FPN at the default render factor, for photos of any size."
  type        = number
  default     = 512

  validation {
    condition     = var.memory_mib >= 128 && var.memory_mib <= 32768 && floor(var.memory_mib) == var.memory_mib
    error_message = "memory_mib must be a whole number from 128 to 32768."
  }
  validation {
    condition     = var.memory_mib >= 512 || var.generation == 1
    error_message = "memory_mib must be at least 512 on the second generation; generation = 1 allows 128."
  }
  validation {
    condition     = var.memory_mib <= local.most_memory_mib
    error_message = "memory_mib is more than this cpu may have: 512 below 0.5 CPU, 1024 below 1, 4096 with 1, 8192 with 2, 16384 with 4, 24576 with 6, 32768 with 8."
  }
  validation {
    condition     = var.memory_mib >= local.least_memory_mib
    error_message = "memory_mib is less than this cpu must have: 2048 with 4 CPUs, 4096 with 6 or 8."
  }
}

variable "cpu" {
  description = "Number of CPUs of an instance, and of threads of the network."
  type        = number
  default     = 1

  validation {
    condition     = contains([1, 2, 4, 6, 8], var.cpu) || (var.cpu >= 0.08 && var.cpu < 1)
    error_message = "cpu must be 1, 2, 4, 6 or 8, or a fraction from 0.08."
  }
  validation {
    condition     = var.cpu >= 1 || (var.generation == 1 && var.concurrency == 1 && coalesce(var.events_concurrency, 1) == 1)
    error_message = "cpu below 1 needs generation = 1, concurrency = 1 and events_concurrency = 1."
  }
}

variable "generation" {
  description = "Execution environment of the services: 2 is a full Linux; 1 (gVisor) starts faster and allows less than 512 MiB."
  type        = number
  default     = 2

  validation {
    condition     = contains([1, 2], var.generation)
    error_message = "generation must be 1 or 2."
  }
}

variable "concurrency" {
  description = "Maximum number of concurrent requests per instance. They share its memory budget; requests that do not fit wait."
  type        = number
  default     = 4

  validation {
    condition     = var.concurrency >= 1 && var.concurrency <= 80 && floor(var.concurrency) == var.concurrency
    error_message = "concurrency must be a whole number from 1 to 80; further requests would only wait."
  }
}

variable "events_concurrency" {
  description = "Maximum number of concurrent photos per instance of the events service. Null: 2, or 1 if concurrency is 1. With 2, reading, inference and writing overlap; further ones would wait for memory, and a wait that ends with a 503 counts as a delivery attempt."
  type        = number
  default     = null

  validation {
    condition     = var.events_concurrency == null ? true : var.events_concurrency >= 1 && var.events_concurrency <= 80 && floor(var.events_concurrency) == var.events_concurrency
    error_message = "events_concurrency must be a whole number from 1 to 80."
  }
}

variable "timeout_seconds" {
  description = "Timeout of a request, including waiting for memory."
  type        = number
  default     = 60

  validation {
    condition     = var.timeout_seconds >= 10 && var.timeout_seconds <= 600 && floor(var.timeout_seconds) == var.timeout_seconds
    error_message = "timeout_seconds must be a whole number from 10 to 600, which is the longest that Pub/Sub waits for the events service."
  }
}

variable "min_instances" {
  description = "Minimum number of HTTP instances, which are billed also when they are idle."
  type        = number
  default     = 0

  validation {
    condition     = var.min_instances >= 0 && var.min_instances <= var.max_instances && floor(var.min_instances) == var.min_instances
    error_message = "min_instances must be a whole number from 0 to max_instances."
  }
}

variable "max_instances" {
  description = "Maximum number of HTTP instances, which limits the cost of a flood of requests."
  type        = number
  default     = 10

  validation {
    condition     = var.max_instances >= 1 && var.max_instances <= 1000 && floor(var.max_instances) == var.max_instances
    error_message = "max_instances must be a whole number from 1 to 1000."
  }
}

variable "events_max_instances" {
  description = "Maximum number of instances for photos in the bucket; further photos wait in the subscription."
  type        = number
  default     = 10

  validation {
    condition     = var.events_max_instances >= 1 && var.events_max_instances <= 1000 && floor(var.events_max_instances) == var.events_max_instances
    error_message = "events_max_instances must be a whole number from 1 to 1000."
  }
}

variable "deletion_protection" {
  description = "Prevent `terraform destroy` from deleting the services and the job, which contain no data."
  type        = bool
  default     = false
}

# Access.

variable "public" {
  description = "Allow unauthenticated calls of the HTTP service."
  type        = bool
  default     = false
}

variable "invokers" {
  description = "Members that may call the HTTP service if it is not public: user:..., group:..., serviceAccount:..., domain:..., principal://... or principalSet://... (identity federation)."
  type        = set(string)
  default     = []

  validation {
    condition     = alltrue([for member in var.invokers : can(regex("^((user|group|serviceAccount|domain):|principal(Set)?://).+$", member))])
    error_message = "invokers must be of the form user:NAME@DOMAIN, group:..., serviceAccount:..., domain:..., principal://... or principalSet://...; for everyone set public = true."
  }
}

variable "ingress" {
  description = "Allowed sources of requests to the HTTP service: all, internal (networks of this project), or load-balancer (internal, or through a load balancer)."
  type        = string
  default     = "all"

  validation {
    condition     = contains(["all", "internal", "load-balancer"], var.ingress)
    error_message = "ingress must be all, internal or load-balancer."
  }
}

variable "cors_origins" {
  description = "Origins that may call the HTTP service from a browser (CORS), such as https://example.com, or * for any."
  type        = list(string)
  default     = []

  validation {
    condition     = alltrue([for origin in var.cors_origins : origin == "*" || can(regex("^https?://[^/,[:space:]]+$", origin))])
    error_message = "cors_origins must be scheme and host without a path, such as https://example.com, or *."
  }
}

# Settings of the service. Null means the service's default; docs/settings.md describes each setting.

variable "model" {
  description = "Model file in the image or under /models, or the name of a zoo model in the image. Null: the model that the image was built with."
  type        = string
  default     = null

  validation {
    condition     = var.model == null ? true : trimspace(var.model) != ""
    error_message = "model must not be empty; null means the model that the image was built with."
  }
}

variable "model_bucket" {
  description = "Existing bucket that is mounted read-only at /models, for a model that is not in the image."
  type        = string
  default     = null

  validation {
    condition     = var.model_bucket == null || var.generation == 2
    error_message = "model_bucket needs generation = 2: the first generation cannot mount a bucket."
  }
}

variable "render_factor" {
  description = "Default render factor: a number from 4 to 256, or auto for the largest that fits the photo and the memory."
  type        = string
  default     = null

  validation {
    condition     = var.render_factor == null || var.render_factor == "auto" || try(tonumber(var.render_factor) >= 4 && tonumber(var.render_factor) <= 256 && floor(tonumber(var.render_factor)) == tonumber(var.render_factor), false)
    error_message = "render_factor must be auto or a whole number from 4 to 256."
  }
}

variable "fit" {
  description = "Default fit: aspect keeps the photo's aspect ratio, square stretches the photo."
  type        = string
  default     = null

  validation {
    condition     = var.fit == null ? true : contains(["aspect", "square"], var.fit)
    error_message = "fit must be aspect or square."
  }
}

variable "min_score" {
  description = "Default minimum score of an instance."
  type        = number
  default     = null

  validation {
    condition     = var.min_score == null ? true : var.min_score >= 0 && var.min_score <= 1
    error_message = "min_score must be a number from 0 to 1."
  }
}

variable "max_detections" {
  description = "Maximum number of instances per photo."
  type        = number
  default     = null

  validation {
    condition     = var.max_detections == null ? true : var.max_detections >= 1 && var.max_detections <= 1000 && floor(var.max_detections) == var.max_detections
    error_message = "max_detections must be a whole number from 1 to 1000."
  }
}

variable "wait_seconds" {
  description = "Maximum time that a request waits for memory before it gets a 503."
  type        = number
  default     = 30

  validation {
    condition     = var.wait_seconds >= 0 && var.wait_seconds <= var.timeout_seconds - 5
    error_message = "wait_seconds must be at least 5 below timeout_seconds, so that a request that has waited can still be processed."
  }
}

variable "environment" {
  description = "Further settings (SEGMENT_...) of both services and the job."
  type        = map(string)
  default     = {}

  validation {
    condition     = alltrue([for name in keys(var.environment) : can(regex("^SEGMENT_[A-Z_]+$", name))])
    error_message = "the names in environment must be settings of the service, which start with SEGMENT_."
  }
  validation {
    condition     = length(setintersection(keys(var.environment), local.own_settings)) == 0
    error_message = "environment must not contain settings that have a Terraform variable or are derived from one: ${join(", ", setintersection(keys(var.environment), local.own_settings))}."
  }
}

# Buckets.

variable "input_bucket" {
  description = "Bucket for photos. Null: PROJECT-NAME-input."
  type        = string
  default     = null

  validation {
    condition     = var.input_bucket == null ? true : can(regex("^[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]$", var.input_bucket))
    error_message = "input_bucket must be a bucket's name: 3 to 63 lower-case letters, digits, hyphens, underscores and dots; no gs://."
  }
}

variable "create_input_bucket" {
  description = "Create the input bucket; false uses an existing one."
  type        = bool
  default     = true

  validation {
    condition     = var.create_input_bucket || var.input_bucket != null
    error_message = "create_input_bucket = false needs input_bucket, the name of the existing one."
  }
}

variable "input_project" {
  description = "Project of an existing input bucket in another project, whose Cloud Storage service agent publishes the notifications."
  type        = string
  default     = null

  validation {
    condition     = var.input_project == null || !var.create_input_bucket
    error_message = "input_project needs create_input_bucket = false: a bucket that is created is in project_id."
  }
}

variable "input_prefix" {
  description = "Only objects whose names start with this prefix are segmented, such as photos/."
  type        = string
  default     = ""

  validation {
    condition     = !startswith(var.input_prefix, "/") && trimspace(var.input_prefix) == var.input_prefix
    error_message = "input_prefix must not start with a slash or have spaces around it: names of objects do not."
  }
}

variable "input_retention_days" {
  description = "Number of days after which photos are deleted. Null: never."
  type        = number
  default     = null

  validation {
    condition     = var.input_retention_days == null ? true : var.input_retention_days >= 1 && floor(var.input_retention_days) == var.input_retention_days
    error_message = "input_retention_days must be a whole number of at least 1."
  }
}

variable "output_bucket" {
  description = "Bucket for results; must not be the input bucket. Null: PROJECT-NAME-output."
  type        = string
  default     = null

  validation {
    condition     = var.output_bucket == null ? true : can(regex("^[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]$", var.output_bucket))
    error_message = "output_bucket must be a bucket's name: 3 to 63 lower-case letters, digits, hyphens, underscores and dots; no gs://."
  }
  validation {
    condition     = coalesce(var.output_bucket, local.default_output_bucket) != local.input_bucket
    error_message = "output_bucket must not be the input bucket: each result would cause another event."
  }
}

variable "create_output_bucket" {
  description = "Create the output bucket; false uses an existing one."
  type        = bool
  default     = true

  validation {
    condition     = var.create_output_bucket || var.output_bucket != null
    error_message = "create_output_bucket = false needs output_bucket, the name of the existing one."
  }
}

variable "output_prefix" {
  description = "Prefix of the names of results, such as segmented/."
  type        = string
  default     = ""

  validation {
    condition     = !startswith(var.output_prefix, "/") && trimspace(var.output_prefix) == var.output_prefix
    error_message = "output_prefix must not start with a slash or have spaces around it."
  }
}

variable "output_formats" {
  description = "Formats of the results of each photo: png, jpeg or webp (overlay), json (COCO), ids (map of instance ids), cutouts (zip)."
  type        = list(string)
  default     = ["png", "json"]

  validation {
    condition     = length(var.output_formats) > 0 && length(setsubtract(var.output_formats, ["png", "jpeg", "webp", "json", "ids", "cutouts"])) == 0
    error_message = "output_formats must be one or more of png, jpeg, webp, json, ids, cutouts."
  }
}

variable "output_retention_days" {
  description = "Number of days after which results are deleted. Null: never."
  type        = number
  default     = null

  validation {
    condition     = var.output_retention_days == null ? true : var.output_retention_days >= 1 && floor(var.output_retention_days) == var.output_retention_days
    error_message = "output_retention_days must be a whole number of at least 1."
  }
}

variable "force_destroy" {
  description = "Allow `terraform destroy` to delete the created buckets with their contents."
  type        = bool
  default     = false
}

# Delivery of events.

variable "ack_deadline_seconds" {
  description = "Time after which Pub/Sub redelivers an event that is not acknowledged. Must be at least timeout_seconds, or photos are redelivered while they are being segmented."
  type        = number
  default     = 120

  validation {
    condition     = var.ack_deadline_seconds >= 10 && var.ack_deadline_seconds <= 600 && floor(var.ack_deadline_seconds) == var.ack_deadline_seconds
    error_message = "ack_deadline_seconds must be a whole number from 10 to 600."
  }
  validation {
    condition     = var.ack_deadline_seconds >= var.timeout_seconds
    error_message = "ack_deadline_seconds must be at least timeout_seconds, or photos are redelivered while they are being segmented."
  }
}

variable "max_delivery_attempts" {
  description = "Number of deliveries of an event before it becomes a dead letter. Pub/Sub also counts deliveries that a busy service answers with 503, so the default is its maximum: with a backoff of 10 s to 10 min, 100 deliveries take about 16 hours."
  type        = number
  default     = 100

  validation {
    condition     = var.max_delivery_attempts >= 5 && var.max_delivery_attempts <= 100 && floor(var.max_delivery_attempts) == var.max_delivery_attempts
    error_message = "max_delivery_attempts must be a whole number from 5 to 100."
  }
}

variable "dead_letter_days" {
  description = "Number of days for which dead letters are kept."
  type        = number
  default     = 14

  validation {
    condition     = var.dead_letter_days >= 1 && var.dead_letter_days <= 31 && floor(var.dead_letter_days) == var.dead_letter_days
    error_message = "dead_letter_days must be a whole number from 1 to 31."
  }
}

# The backfill job, which segments photos that were in the bucket before.

variable "backfill_tasks" {
  description = "Number of parallel tasks of the backfill job, which divide the bucket's objects among them."
  type        = number
  default     = 4

  validation {
    condition     = var.backfill_tasks >= 1 && var.backfill_tasks <= 100 && floor(var.backfill_tasks) == var.backfill_tasks
    error_message = "backfill_tasks must be a whole number from 1 to 100."
  }
}

variable "backfill_hours" {
  description = "Time limit of a task. A task that exceeds it is retried and continues where it stopped."
  type        = number
  default     = 24

  validation {
    condition     = var.backfill_hours >= 1 && var.backfill_hours <= 168 && floor(var.backfill_hours) == var.backfill_hours
    error_message = "backfill_hours must be a whole number from 1 to 168."
  }
}

variable "backfill_dataset" {
  description = "Formats of one dataset of all photos that the backfill job writes to the output bucket: coco, parquet, both, or none. The job's account may then replace and delete the objects of the dataset, and only these. parquet needs an image that was built with PARQUET=1."
  type        = list(string)
  default     = []

  validation {
    condition     = length(setsubtract(var.backfill_dataset, ["coco", "parquet"])) == 0 && length(distinct(var.backfill_dataset)) == length(var.backfill_dataset)
    error_message = "backfill_dataset may contain coco and parquet, each once."
  }
}

variable "backfill_dataset_only" {
  description = "Let the backfill job write the dataset instead of files for each photo. A run continues from the parts below _segment/dataset/ in the output bucket; output_retention_days deletes these as well."
  type        = bool
  default     = false

  validation {
    condition     = !var.backfill_dataset_only || length(var.backfill_dataset) > 0
    error_message = "backfill_dataset_only needs the formats of the dataset in backfill_dataset."
  }
}

# Monitoring.

variable "alerts" {
  description = "Create alert policies for instances that ran out of memory, bucket events that failed, dead letters, undelivered photos and failed backfill jobs."
  type        = bool
  default     = true
}

variable "oldest_photo_minutes" {
  description = "Alert when a photo has waited for this number of minutes to be segmented."
  type        = number
  default     = 60

  validation {
    condition     = var.oldest_photo_minutes >= 5 && var.oldest_photo_minutes <= 1440 && floor(var.oldest_photo_minutes) == var.oldest_photo_minutes
    error_message = "oldest_photo_minutes must be a whole number from 5 to 1440."
  }
}

variable "alert_emails" {
  description = "Addresses that get a mail for alerts and the budget. Without any, alerts are only shown in the console."
  type        = set(string)
  default     = []

  validation {
    condition     = alltrue([for email in var.alert_emails : can(regex("^[^@[:space:]]+@[^@[:space:]]+\\.[^@[:space:]]+$", email))])
    error_message = "alert_emails must be mail addresses."
  }
  validation {
    condition     = length(var.alert_emails) <= 16
    error_message = "alert_emails must be at most 16 addresses, or 5 with a budget: alert policies and budgets accept no more. Use the address of a group."
  }
}

variable "budget" {
  description = "Monthly budget of the project, in whole units of the billing account's currency, with mails at 50, 90 and 100 %. Requires permission to create budgets in the billing account."
  type = object({
    billing_account = string
    amount          = number
  })
  default = null

  validation {
    condition     = var.budget == null ? true : can(regex("^[0-9A-F]{6}-[0-9A-F]{6}-[0-9A-F]{6}$", var.budget.billing_account))
    error_message = "budget.billing_account must be an account's id, such as 012345-6789AB-CDEF01."
  }
  validation {
    condition     = var.budget == null ? true : var.budget.amount >= 1 && floor(var.budget.amount) == var.budget.amount
    error_message = "budget.amount must be a whole number of at least 1."
  }
}
