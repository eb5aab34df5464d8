# Service accounts and their permissions. Every grant is asserted here, as a missing one would only be noticed when a photo is lost.

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

  invokers     = ["user:me@example.com"]
  model_bucket = "models"
}

run "accounts_and_grants" {
  assert {
    condition     = google_cloud_run_v2_service.segment["http"].template[0].service_account == google_service_account.http.email
    error_message = "The HTTP service runs as an account without permissions."
  }
  assert {
    condition     = google_cloud_run_v2_service.segment["events"].template[0].service_account == google_service_account.bucket.email && google_cloud_run_v2_job.backfill.template[0].template[0].service_account == google_service_account.bucket.email
    error_message = "The events service and the job run as the account with access to the buckets."
  }
  assert {
    condition     = [google_service_account.http.account_id, google_service_account.bucket.account_id, google_service_account.push.account_id] == ["segment-http", "segment-bucket", "segment-push"]
    error_message = "The names of accounts start with the deployment's name."
  }
  assert {
    condition     = google_storage_bucket_iam_member.reads_photos.role == "roles/storage.objectViewer" && google_storage_bucket_iam_member.reads_photos.bucket == google_storage_bucket.input[0].name && google_storage_bucket_iam_member.reads_photos.member == google_service_account.bucket.member
    error_message = "The account can read photos but not write them."
  }
  assert {
    condition     = google_storage_bucket_iam_member.creates_results.role == "roles/storage.objectCreator" && google_storage_bucket_iam_member.creates_results.bucket == google_storage_bucket.output[0].name && google_storage_bucket_iam_member.creates_results.member == google_service_account.bucket.member
    error_message = "The account can create results but not overwrite or delete them."
  }
  assert {
    condition     = google_storage_bucket_iam_member.reads_results.role == "roles/storage.objectViewer" && google_storage_bucket_iam_member.reads_results.bucket == google_storage_bucket.output[0].name && google_storage_bucket_iam_member.reads_results.member == google_service_account.bucket.member
    error_message = "The account can list results."
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
    error_message = "Pub/Sub may create tokens of the push account."
  }
  assert {
    condition     = google_pubsub_subscription_iam_member.pubsub_takes_off.role == "roles/pubsub.subscriber" && google_pubsub_subscription_iam_member.pubsub_takes_off.subscription == google_pubsub_subscription.photos.name && google_pubsub_subscription_iam_member.pubsub_takes_off.member == "serviceAccount:service-123456789012@gcp-sa-pubsub.iam.gserviceaccount.com"
    error_message = "Pub/Sub may remove undeliverable messages from the subscription."
  }
  assert {
    condition     = google_pubsub_topic_iam_member.pubsub_publishes_dead.role == "roles/pubsub.publisher" && google_pubsub_topic_iam_member.pubsub_publishes_dead.topic == google_pubsub_topic.dead.name && google_pubsub_topic_iam_member.pubsub_publishes_dead.member == "serviceAccount:service-123456789012@gcp-sa-pubsub.iam.gserviceaccount.com"
    error_message = "Pub/Sub may publish dead letters."
  }
  assert {
    condition     = google_pubsub_subscription_iam_member.redrive_takes_off.role == "roles/pubsub.subscriber" && google_pubsub_subscription_iam_member.redrive_takes_off.subscription == google_pubsub_subscription.dead.name && google_pubsub_subscription_iam_member.redrive_takes_off.member == google_service_account.bucket.member
    error_message = "The account of the backfill job is a subscriber of the dead letters' subscription."
  }
  assert {
    condition     = google_cloud_run_v2_service_iam_member.callers["user:me@example.com"].role == "roles/run.invoker" && google_cloud_run_v2_service_iam_member.callers["user:me@example.com"].name == "segment"
    error_message = "Invokers may call the HTTP service."
  }
  assert {
    condition     = { for key, grant in google_storage_bucket_iam_member.model : key => [grant.bucket, grant.role, grant.member] } == { http = ["models", "roles/storage.objectViewer", google_service_account.http.member], bucket = ["models", "roles/storage.objectViewer", google_service_account.bucket.member] }
    error_message = "Both accounts may read the mounted model."
  }
  assert {
    condition     = length(google_storage_bucket_iam_member.replaces_dataset) == 0
    error_message = "Without a dataset, the account cannot replace objects."
  }
}

run "dataset" {
  variables {
    backfill_dataset = ["coco", "parquet"]
    output_prefix    = "out/"
  }

  assert {
    condition     = google_storage_bucket_iam_member.replaces_dataset[0].role == "roles/storage.objectUser" && google_storage_bucket_iam_member.replaces_dataset[0].bucket == google_storage_bucket.output[0].name && google_storage_bucket_iam_member.replaces_dataset[0].member == google_service_account.bucket.member
    error_message = "The account can replace the dataset."
  }
  assert {
    condition     = google_storage_bucket_iam_member.replaces_dataset[0].condition[0].expression == join(" || ", [for name in ["instances.json", "instances.parquet/", "errors.csv", "_segment/dataset/"] : "resource.name.startsWith(\"projects/_/buckets/my-project-segment-output/objects/out/${name}\")"])
    error_message = "The account cannot replace results of photos."
  }
  assert {
    condition     = google_cloud_run_v2_job.backfill.template[0].template[0].containers[0].args == tolist(["-m", "segment", "backfill", "gs://my-project-segment-input/", "--dataset", "coco,parquet"])
    error_message = "The job writes the dataset."
  }
}

run "dataset_only" {
  variables {
    backfill_dataset      = ["coco"]
    backfill_dataset_only = true
  }

  assert {
    condition     = google_cloud_run_v2_job.backfill.template[0].template[0].containers[0].args == tolist(["-m", "segment", "backfill", "gs://my-project-segment-input/", "--dataset", "coco", "--dataset-only"])
    error_message = "The job writes only the dataset."
  }
}

run "kms_key" {
  variables {
    kms_key = "projects/keys/locations/us-central1/keyRings/ring/cryptoKeys/key"
  }

  assert {
    condition = { for agent, grant in google_kms_crypto_key_iam_member.encrypts : agent => [grant.crypto_key_id, grant.role, grant.member] } == {
      for agent, member in {
        artifactregistry = google_project_service_identity.encrypts["artifactregistry.googleapis.com"].member
        pubsub           = google_project_service_identity.pubsub.member
        run              = google_project_service_identity.encrypts["run.googleapis.com"].member
        storage          = data.google_storage_project_service_account.encrypts[0].member
      } : agent => [var.kms_key, "roles/cloudkms.cryptoKeyEncrypterDecrypter", member]
    }
    error_message = "The service agents of all that store data, and no other account, can use the key."
  }
  assert {
    condition     = data.google_storage_project_service_account.encrypts[0].project == "my-project"
    error_message = "Buckets are encrypted by the service agent of their own project."
  }
  assert {
    condition     = alltrue([for bucket in [google_storage_bucket.input[0], google_storage_bucket.output[0]] : bucket.encryption[0].default_kms_key_name == var.kms_key])
    error_message = "Photos and results are encrypted with the key."
  }
  assert {
    condition     = [google_pubsub_topic.photos.kms_key_name, google_pubsub_topic.dead.kms_key_name, google_artifact_registry_repository.images[0].kms_key_name] == [var.kms_key, var.kms_key, var.kms_key]
    error_message = "The topics and the repository are encrypted with the key."
  }
  assert {
    condition     = alltrue([for service in google_cloud_run_v2_service.segment : service.template[0].encryption_key == var.kms_key]) && google_cloud_run_v2_job.backfill.template[0].template[0].encryption_key == var.kms_key
    error_message = "The services and the job are encrypted with the key."
  }
  assert {
    condition     = contains(keys(google_project_service.used), "cloudkms.googleapis.com")
    error_message = "The API that sets the grants is enabled."
  }
}

run "kms_key_granted_by_others" {
  variables {
    kms_key       = "projects/keys/locations/us-central1/keyRings/ring/cryptoKeys/key"
    grant_kms_key = false
  }

  assert {
    condition     = length(google_kms_crypto_key_iam_member.encrypts) == 0 && google_storage_bucket.input[0].encryption[0].default_kms_key_name == var.kms_key
    error_message = "The key is used, but its grants are not changed."
  }
}
