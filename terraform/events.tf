# A new photo in the input bucket causes a notification, which goes to a topic and a push subscription to the events
# service. After max_delivery_attempts it goes to the dead-letter topic, whose subscription keeps it.
#
# Eventarc is not used, because its subscription has an acknowledgement deadline of 10 s and no dead-letter topic, and
# Terraform cannot change either.

resource "google_pubsub_topic" "photos" {
  #checkov:skip=CKV_GCP_83:kms_key is optional; messages contain names of objects, not photos
  project      = var.project_id
  name         = "${var.name}-photos"
  labels       = var.labels
  kms_key_name = var.kms_key

  depends_on = [google_project_service.used, google_kms_crypto_key_iam_member.encrypts]
}

resource "google_pubsub_topic" "dead" {
  #checkov:skip=CKV_GCP_83:kms_key is optional; messages contain names of objects, not photos
  project      = var.project_id
  name         = "${var.name}-dead"
  labels       = var.labels
  kms_key_name = var.kms_key

  depends_on = [google_project_service.used, google_kms_crypto_key_iam_member.encrypts]
}

resource "google_storage_notification" "photos" {
  bucket             = local.input_bucket_ready
  topic              = google_pubsub_topic.photos.id
  payload_format     = "JSON_API_V1"
  event_types        = ["OBJECT_FINALIZE"]
  object_name_prefix = var.input_prefix != "" ? var.input_prefix : null

  depends_on = [google_pubsub_topic_iam_member.storage_publishes] # Cloud Storage tests it when the notification is made
}

resource "google_pubsub_subscription" "photos" {
  project                    = var.project_id
  name                       = "${var.name}-photos"
  topic                      = google_pubsub_topic.photos.id
  labels                     = var.labels
  ack_deadline_seconds       = var.ack_deadline_seconds
  message_retention_duration = "604800s" # a week, longer than max_delivery_attempts deliveries take

  push_config {
    push_endpoint = google_cloud_run_v2_service.segment["events"].uri
    oidc_token {
      service_account_email = google_service_account.push.email
      audience              = google_cloud_run_v2_service.segment["events"].uri
    }
  }

  retry_policy {
    minimum_backoff = "10s"
    maximum_backoff = "600s"
  }

  dead_letter_policy {
    dead_letter_topic     = google_pubsub_topic.dead.id
    max_delivery_attempts = var.max_delivery_attempts
  }

  expiration_policy {
    ttl = "" # never: a bucket may be quiet for a month
  }

  depends_on = [google_cloud_run_v2_service_iam_member.push_invokes]
}

# Without a subscription, the topic would drop its messages. The backfill job pulls from it with --redrive.
resource "google_pubsub_subscription" "dead" {
  project                    = var.project_id
  name                       = "${var.name}-dead"
  topic                      = google_pubsub_topic.dead.id
  labels                     = var.labels
  ack_deadline_seconds       = var.ack_deadline_seconds
  message_retention_duration = "${var.dead_letter_days * 86400}s"

  retry_policy {
    minimum_backoff = "10s"
    maximum_backoff = "600s"
  }

  expiration_policy {
    ttl = ""
  }
}
