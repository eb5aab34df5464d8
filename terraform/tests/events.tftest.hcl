# The delivery of an event, from the bucket to the service or to the dead letters.

mock_provider "google-beta" {
  mock_resource "google_project_service_identity" {
    defaults = { member = "serviceAccount:service-123456789012@gcp-sa-pubsub.iam.gserviceaccount.com" }
  }
}

mock_provider "google" {
  mock_data "google_project" {
    defaults = { number = "123456789012" }
  }
  mock_data "google_storage_project_service_account" {
    defaults = { email_address = "service-123456789012@gs-project-accounts.iam.gserviceaccount.com" }
  }
}

variables {
  project_id = "my-project"
  image      = "us-central1-docker.pkg.dev/my-project/segment/segment:1.0.0"
}

run "delivery" {
  assert {
    condition     = google_storage_notification.photos.bucket == google_storage_bucket.input[0].name && google_storage_notification.photos.topic == google_pubsub_topic.photos.id
    error_message = "The input bucket notifies the topic, by its id."
  }
  assert {
    condition     = google_storage_notification.photos.payload_format == "JSON_API_V1" && google_storage_notification.photos.event_types == toset(["OBJECT_FINALIZE"])
    error_message = "Only new objects are notified, with the object resource as payload."
  }
  assert {
    condition     = google_pubsub_subscription.photos.topic == google_pubsub_topic.photos.id && google_pubsub_subscription.photos.push_config[0].push_endpoint == google_cloud_run_v2_service.segment["events"].uri
    error_message = "The subscription pushes to the events service."
  }
  assert {
    condition     = google_pubsub_subscription.photos.push_config[0].oidc_token[0].service_account_email == google_service_account.push.email && google_pubsub_subscription.photos.push_config[0].oidc_token[0].audience == google_cloud_run_v2_service.segment["events"].uri
    error_message = "Push requests are authenticated as the push account, for the service's address."
  }
  assert {
    condition     = google_pubsub_subscription.photos.ack_deadline_seconds >= tonumber(trimsuffix(google_cloud_run_v2_service.segment["events"].template[0].timeout, "s"))
    error_message = "The acknowledgement deadline is not shorter than the service's timeout."
  }
  assert {
    condition     = google_pubsub_subscription.photos.ack_deadline_seconds == 120 && google_pubsub_subscription.photos.expiration_policy[0].ttl == ""
    error_message = "The acknowledgement deadline is 120 s, and the subscription never expires."
  }
  assert {
    condition     = google_pubsub_subscription.photos.retry_policy[0].minimum_backoff == "10s" && google_pubsub_subscription.photos.retry_policy[0].maximum_backoff == "600s"
    error_message = "Failed events are retried with exponential backoff."
  }
  assert {
    condition     = google_pubsub_subscription.photos.dead_letter_policy[0].dead_letter_topic == google_pubsub_topic.dead.id && google_pubsub_subscription.photos.dead_letter_policy[0].max_delivery_attempts == 100
    error_message = "After 100 deliveries, an event becomes a dead letter."
  }
  assert {
    condition     = google_pubsub_subscription.dead.topic == google_pubsub_topic.dead.id && google_pubsub_subscription.dead.message_retention_duration == "1209600s" && google_pubsub_subscription.dead.expiration_policy[0].ttl == ""
    error_message = "Dead letters are kept for 14 days in a separate subscription."
  }
  assert {
    condition     = length(google_pubsub_subscription.dead.push_config) == 0 && length(google_pubsub_subscription.dead.dead_letter_policy) == 0
    error_message = "The subscription of dead letters has no push endpoint, and keeps letters that fail again."
  }
  assert {
    condition     = google_pubsub_subscription_iam_member.redrive_takes_off.subscription == google_pubsub_subscription.dead.name && google_pubsub_subscription_iam_member.redrive_takes_off.member == google_service_account.bucket.member && google_pubsub_subscription_iam_member.redrive_takes_off.role == "roles/pubsub.subscriber"
    error_message = "The account of the backfill job is a subscriber of the dead letters' subscription."
  }
}
