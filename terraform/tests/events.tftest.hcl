# The way of an event, and who must be allowed what for it to arrive. Every grant is asserted here: a missing one shows only
# when a photo is lost.

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

run "notification" {
  assert {
    condition     = google_storage_notification.photos.bucket == google_storage_bucket.input[0].name && google_storage_notification.photos.topic == google_pubsub_topic.photos.id
    error_message = "The input bucket notifies the topic, by its id."
  }
  assert {
    condition     = google_storage_notification.photos.payload_format == "JSON_API_V1" && google_storage_notification.photos.event_types == toset(["OBJECT_FINALIZE"])
    error_message = "New objects only, with the object's resource as payload."
  }
}

run "subscription" {
  assert {
    condition     = google_pubsub_subscription.photos.topic == google_pubsub_topic.photos.id && google_pubsub_subscription.photos.push_config[0].push_endpoint == google_cloud_run_v2_service.segment["events"].uri
    error_message = "The topic is pushed to the events service."
  }
  assert {
    condition     = google_pubsub_subscription.photos.push_config[0].oidc_token[0].service_account_email == google_service_account.push.email && google_pubsub_subscription.photos.push_config[0].oidc_token[0].audience == google_cloud_run_v2_service.segment["events"].uri
    error_message = "The push signs as the push account, for the service's address."
  }
  assert {
    condition     = google_pubsub_subscription.photos.ack_deadline_seconds >= tonumber(trimsuffix(google_cloud_run_v2_service.segment["events"].template[0].timeout, "s"))
    error_message = "The deadline is no shorter than the service's timeout."
  }
  assert {
    condition     = google_pubsub_subscription.photos.ack_deadline_seconds == 120 && google_pubsub_subscription.photos.expiration_policy[0].ttl == ""
    error_message = "Two minutes for a photo; the subscription never expires."
  }
  assert {
    condition     = google_pubsub_subscription.photos.retry_policy[0].minimum_backoff == "10s" && google_pubsub_subscription.photos.retry_policy[0].maximum_backoff == "600s"
    error_message = "What fails is tried again ever more slowly."
  }
}

run "dead_letters" {
  assert {
    condition     = google_pubsub_subscription.photos.dead_letter_policy[0].dead_letter_topic == google_pubsub_topic.dead.id && google_pubsub_subscription.photos.dead_letter_policy[0].max_delivery_attempts == 20
    error_message = "After twenty deliveries an event is a dead letter."
  }
  assert {
    condition     = google_pubsub_subscription.dead.topic == google_pubsub_topic.dead.id && google_pubsub_subscription.dead.message_retention_duration == "1209600s" && google_pubsub_subscription.dead.expiration_policy[0].ttl == ""
    error_message = "Dead letters wait two weeks in a subscription of their own."
  }
}

run "accounts" {
  assert {
    condition     = google_cloud_run_v2_service.segment["http"].template[0].service_account == google_service_account.http.email
    error_message = "The HTTP service runs as an account that may do nothing."
  }
  assert {
    condition     = google_cloud_run_v2_service.segment["events"].template[0].service_account == google_service_account.bucket.email && google_cloud_run_v2_job.backfill.template[0].template[0].service_account == google_service_account.bucket.email
    error_message = "The events service and the job run as the account that may use the buckets."
  }
  assert {
    condition     = [google_service_account.http.account_id, google_service_account.bucket.account_id, google_service_account.push.account_id] == ["segment-http", "segment-bucket", "segment-push"]
    error_message = "Accounts carry the deployment's name."
  }
}

run "grants" {
  assert {
    condition     = google_storage_bucket_iam_member.reads_photos.role == "roles/storage.objectViewer" && google_storage_bucket_iam_member.reads_photos.bucket == google_storage_bucket.input[0].name && google_storage_bucket_iam_member.reads_photos.member == google_service_account.bucket.member
    error_message = "Photos are read, not written."
  }
  assert {
    condition     = google_storage_bucket_iam_member.writes_results.role == "roles/storage.objectUser" && google_storage_bucket_iam_member.writes_results.bucket == google_storage_bucket.output[0].name && google_storage_bucket_iam_member.writes_results.member == google_service_account.bucket.member
    error_message = "Results are read and written."
  }
  assert {
    condition     = google_pubsub_topic_iam_member.storage_publishes.role == "roles/pubsub.publisher" && google_pubsub_topic_iam_member.storage_publishes.topic == google_pubsub_topic.photos.name && google_pubsub_topic_iam_member.storage_publishes.member == "serviceAccount:service-123456789012@gs-project-accounts.iam.gserviceaccount.com"
    error_message = "Cloud Storage may publish to the topic."
  }
  assert {
    condition     = google_cloud_run_v2_service_iam_member.push_invokes.role == "roles/run.invoker" && google_cloud_run_v2_service_iam_member.push_invokes.name == "segment-events" && google_cloud_run_v2_service_iam_member.push_invokes.member == google_service_account.push.member
    error_message = "The push account may call the events service."
  }
  assert {
    condition     = google_service_account_iam_member.pubsub_signs_as_push.role == "roles/iam.serviceAccountTokenCreator" && google_service_account_iam_member.pubsub_signs_as_push.service_account_id == google_service_account.push.name && google_service_account_iam_member.pubsub_signs_as_push.member == "serviceAccount:service-123456789012@gcp-sa-pubsub.iam.gserviceaccount.com"
    error_message = "Pub/Sub may sign as the push account."
  }
  assert {
    condition     = google_pubsub_subscription_iam_member.pubsub_takes_off.role == "roles/pubsub.subscriber" && google_pubsub_subscription_iam_member.pubsub_takes_off.subscription == google_pubsub_subscription.photos.name && google_pubsub_subscription_iam_member.pubsub_takes_off.member == "serviceAccount:service-123456789012@gcp-sa-pubsub.iam.gserviceaccount.com"
    error_message = "Pub/Sub may take what it cannot deliver off the subscription."
  }
  assert {
    condition     = google_pubsub_topic_iam_member.pubsub_publishes_dead.role == "roles/pubsub.publisher" && google_pubsub_topic_iam_member.pubsub_publishes_dead.topic == google_pubsub_topic.dead.name && google_pubsub_topic_iam_member.pubsub_publishes_dead.member == "serviceAccount:service-123456789012@gcp-sa-pubsub.iam.gserviceaccount.com"
    error_message = "Pub/Sub may publish dead letters."
  }
}
