# Three service accounts with minimal permissions:
#   http    HTTP service: none (reads the bucket of a mounted model, if any)
#   bucket  events service and backfill job: reads the input bucket, writes the output bucket
#   push    Pub/Sub's identity for calling the events service: may call it
# Members are added individually (_iam_member), so that other grants are not changed.

resource "google_project_service" "used" {
  for_each = var.enable_apis ? toset(concat(
    [
      "artifactregistry.googleapis.com",
      "cloudresourcemanager.googleapis.com",
      "iam.googleapis.com",
      "logging.googleapis.com",
      "monitoring.googleapis.com",
      "pubsub.googleapis.com",
      "run.googleapis.com",
      "storage.googleapis.com",
    ],
    var.budget == null ? [] : ["billingbudgets.googleapis.com"],
    var.kms_key == null ? [] : ["cloudkms.googleapis.com"],
  )) : []

  project            = var.project_id
  service            = each.value
  disable_on_destroy = false
}

# The data sources do not depend on google_project_service.used: adding an API would make them unknown, and every grant that
# refers to them would be replaced. Their own APIs must be enabled before the first plan (deploy/README.md, step 1).
data "google_project" "this" {
  project_id = var.project_id
}

# The service agent of Cloud Storage in the project of the input bucket: it publishes the notifications. Reading it creates it.
data "google_storage_project_service_account" "input" {
  project = coalesce(var.input_project, var.project_id)
}

# The service agent of Pub/Sub. Enabling the API does not create it, and a grant to an account that does not exist is refused.
resource "google_project_service_identity" "pubsub" {
  provider = google-beta

  project = var.project_id
  service = "pubsub.googleapis.com"

  depends_on = [google_project_service.used]
}

locals {
  pubsub_agent  = google_project_service_identity.pubsub.member
  storage_agent = "serviceAccount:${data.google_storage_project_service_account.input.email_address}"
}

# With kms_key, the services encrypt and decrypt as their service agents in this project, not as the accounts below.
resource "google_project_service_identity" "encrypts" {
  provider = google-beta
  for_each = var.kms_key == null ? toset([]) : toset(["artifactregistry.googleapis.com", "run.googleapis.com"])

  project = var.project_id
  service = each.value

  depends_on = [google_project_service.used]
}

data "google_storage_project_service_account" "encrypts" {
  count = var.kms_key == null ? 0 : 1

  project = var.project_id
}

locals {
  encrypting_agents = var.kms_key == null ? {} : {
    artifactregistry = google_project_service_identity.encrypts["artifactregistry.googleapis.com"].member
    pubsub           = local.pubsub_agent
    run              = google_project_service_identity.encrypts["run.googleapis.com"].member
    storage          = data.google_storage_project_service_account.encrypts[0].member
  }
}

# All that is encrypted with the key depends on these grants: it is created after them, and destroyed before.
resource "google_kms_crypto_key_iam_member" "encrypts" {
  for_each = var.grant_kms_key ? local.encrypting_agents : {}

  crypto_key_id = var.kms_key
  role          = "roles/cloudkms.cryptoKeyEncrypterDecrypter"
  member        = each.value
}

resource "google_service_account" "http" {
  project      = var.project_id
  account_id   = "${var.name}-http"
  display_name = "${var.name}: HTTP service"

  depends_on = [google_project_service.used]
}

resource "google_service_account" "bucket" {
  project      = var.project_id
  account_id   = "${var.name}-bucket"
  display_name = "${var.name}: events service and backfill job"

  depends_on = [google_project_service.used]
}

resource "google_service_account" "push" {
  project      = var.project_id
  account_id   = "${var.name}-push"
  display_name = "${var.name}: Pub/Sub calls the events service as this"

  depends_on = [google_project_service.used]
}

# Callers of the HTTP service.
resource "google_cloud_run_v2_service_iam_member" "callers" {
  for_each = var.public ? toset([]) : var.invokers

  project  = var.project_id
  location = var.region
  name     = google_cloud_run_v2_service.segment["http"].name
  role     = "roles/run.invoker"
  member   = each.value
}

# Read photos, and list them for the backfill.
resource "google_storage_bucket_iam_member" "reads_photos" {
  bucket = local.input_bucket_ready
  role   = "roles/storage.objectViewer"
  member = google_service_account.bucket.member
}

# Create results. This role does not allow overwriting or deleting existing objects.
resource "google_storage_bucket_iam_member" "creates_results" {
  bucket = local.output_bucket_ready
  role   = "roles/storage.objectCreator"
  member = google_service_account.bucket.member
}

# List existing results.
resource "google_storage_bucket_iam_member" "reads_results" {
  bucket = local.output_bucket_ready
  role   = "roles/storage.objectViewer"
  member = google_service_account.bucket.member
}

# Replace the dataset, whose objects are not those of photos. The condition needs uniform bucket-level access.
resource "google_storage_bucket_iam_member" "replaces_dataset" {
  count = length(var.backfill_dataset) > 0 ? 1 : 0

  bucket = local.output_bucket_ready
  role   = "roles/storage.objectUser"
  member = google_service_account.bucket.member

  condition {
    title = "dataset"
    expression = join(" || ", [
      for name in ["instances.json", "instances.parquet/", "errors.csv", "_segment/dataset/"] :
      "resource.name.startsWith(\"projects/_/buckets/${local.output_bucket}/objects/${var.output_prefix}${name}\")"
    ])
  }
}

resource "google_storage_bucket_iam_member" "model" {
  for_each = var.model_bucket == null ? {} : {
    http   = google_service_account.http.member
    bucket = google_service_account.bucket.member
  }

  bucket = var.model_bucket
  role   = "roles/storage.objectViewer"
  member = each.value
}

# Events: Cloud Storage publishes notifications, Pub/Sub calls the service.
resource "google_pubsub_topic_iam_member" "storage_publishes" {
  project = var.project_id
  topic   = google_pubsub_topic.photos.name
  role    = "roles/pubsub.publisher"
  member  = local.storage_agent
}

resource "google_cloud_run_v2_service_iam_member" "push_invokes" {
  project  = var.project_id
  location = var.region
  name     = google_cloud_run_v2_service.segment["events"].name
  role     = "roles/run.invoker"
  member   = google_service_account.push.member
}

# In projects created before April 2021, the agent needs this grant to sign as another account.
resource "google_service_account_iam_member" "pubsub_signs_as_push" {
  service_account_id = google_service_account.push.name
  role               = "roles/iam.serviceAccountTokenCreator"
  member             = local.pubsub_agent
}

# Dead letters: Pub/Sub removes undeliverable messages from the subscription and publishes them.
resource "google_pubsub_subscription_iam_member" "pubsub_takes_off" {
  project      = var.project_id
  subscription = google_pubsub_subscription.photos.name
  role         = "roles/pubsub.subscriber"
  member       = local.pubsub_agent
}

resource "google_pubsub_topic_iam_member" "pubsub_publishes_dead" {
  project = var.project_id
  topic   = google_pubsub_topic.dead.name
  role    = "roles/pubsub.publisher"
  member  = local.pubsub_agent
}

# The backfill job takes dead letters off their subscription when it is asked to deliver them again.
resource "google_pubsub_subscription_iam_member" "redrive_takes_off" {
  project      = var.project_id
  subscription = google_pubsub_subscription.dead.name
  role         = "roles/pubsub.subscriber"
  member       = google_service_account.bucket.member
}
