# Values other than the defaults: each is applied to the right resources.

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
  project_id      = "my-project"
  image           = "us-central1-docker.pkg.dev/my-project/segment/segment:1.0.0"
  billing_account = "012345-6789AB-CDEF01"
}

run "public" {
  variables { public = true }
  assert {
    condition     = { for key, service in google_cloud_run_v2_service.segment : key => service.invoker_iam_disabled } == { http = true, events = false } && length(google_cloud_run_v2_service_iam_member.callers) == 0
    error_message = "public allows everyone to call the HTTP service only."
  }
}

run "private" {
  assert {
    condition     = alltrue([for service in google_cloud_run_v2_service.segment : !service.invoker_iam_disabled])
    error_message = "Without public, both services check their callers."
  }
}

run "invokers" {
  variables { invokers = ["user:me@example.com"] }
  assert {
    condition     = [for caller in google_cloud_run_v2_service_iam_member.callers : [caller.name, caller.role, caller.member]] == [["segment", "roles/run.invoker", "user:me@example.com"]]
    error_message = "invokers may call the HTTP service."
  }
}

run "settings" {
  variables {
    model                = "mask_rcnn_R_50_FPN_3x"
    render_factor        = "auto"
    fit                  = "square"
    min_score            = 0.25
    max_detections       = 20
    wait_seconds         = 5
    cors_origins         = ["https://a.example", "https://b.example"]
    input_prefix         = "photos/"
    output_prefix        = "results/"
    output_formats       = ["jpeg", "ids"]
    environment          = { SEGMENT_QUEUE = "4", SEGMENT_FETCH_SECONDS = "3" }
    cpu                  = 4
    memory_mib           = 2048
    concurrency          = 12
    min_instances        = 2
    max_instances        = 3
    events_max_instances = 4
    events_concurrency   = 3
    oldest_photo_minutes = 10
    ingress              = "load-balancer"
    labels               = { team = "vision" }
  }
  assert {
    condition = {
      for key, service in google_cloud_run_v2_service.segment :
      key => { for env in service.template[0].containers[0].env : env.name => env.value if startswith(env.name, "SEGMENT_") || env.name == "THREADS" }
      } == {
      http = {
        SEGMENT_CORS_ORIGINS   = "https://a.example,https://b.example"
        SEGMENT_FETCH_SECONDS  = "3"
        SEGMENT_FIT            = "square"
        SEGMENT_MAX_DETECTIONS = "20"
        SEGMENT_MEMORY         = "2048Mi"
        SEGMENT_MIN_SCORE      = "0.25"
        SEGMENT_MODEL          = "mask_rcnn_R_50_FPN_3x"
        SEGMENT_QUEUE          = "4"
        SEGMENT_PROJECT        = "my-project"
        SEGMENT_RENDER_FACTOR  = "auto"
        SEGMENT_THREADS        = "4"
        SEGMENT_WAIT_SECONDS   = "5"
        THREADS                = "16"
      }
      events = {
        SEGMENT_DELIVERY_SECONDS = "50"
        SEGMENT_FETCH_SECONDS    = "3"
        SEGMENT_FIT              = "square"
        SEGMENT_INPUT_BUCKET     = "my-project-segment-input"
        SEGMENT_INPUT_PREFIX     = "photos/"
        SEGMENT_MAX_DETECTIONS   = "20"
        SEGMENT_MEMORY           = "2048Mi"
        SEGMENT_MIN_SCORE        = "0.25"
        SEGMENT_MODEL            = "mask_rcnn_R_50_FPN_3x"
        SEGMENT_OUTPUT_BUCKET    = "my-project-segment-output"
        SEGMENT_OUTPUT_FORMATS   = "jpeg,ids"
        SEGMENT_OUTPUT_PREFIX    = "results/"
        SEGMENT_QUEUE            = "4"
        SEGMENT_PROJECT          = "my-project"
        SEGMENT_RENDER_FACTOR    = "auto"
        SEGMENT_THREADS          = "4"
        SEGMENT_WAIT_SECONDS     = "5"
        THREADS                  = "7"
      }
    }
    error_message = "Both services have the common settings, and each its own."
  }
  assert {
    condition     = google_monitoring_alert_policy.oldest_photo[0].conditions[0].condition_threshold[0].threshold_value == 600
    error_message = "oldest_photo_minutes is the alert's threshold."
  }
  assert {
    condition     = { for key, service in google_cloud_run_v2_service.segment : key => service.template[0].scaling[0].max_instance_count } == { http = 3, events = 4 }
    error_message = "Each service has its own maximum number of instances."
  }
  assert {
    condition     = { for key, service in google_cloud_run_v2_service.segment : key => service.template[0].scaling[0].min_instance_count } == { http = 2, events = 0 }
    error_message = "Only the HTTP service has minimum instances."
  }
  assert {
    condition     = { for key, service in google_cloud_run_v2_service.segment : key => service.ingress } == { http = "INGRESS_TRAFFIC_INTERNAL_LOAD_BALANCER", events = "INGRESS_TRAFFIC_INTERNAL_ONLY" }
    error_message = "ingress applies to the HTTP service."
  }
  assert {
    condition     = google_storage_notification.photos.object_name_prefix == "photos/" && google_cloud_run_v2_job.backfill.template[0].template[0].containers[0].args[3] == "gs://my-project-segment-input/photos/"
    error_message = "The prefix applies to events and to the backfill job."
  }
  assert {
    condition     = google_storage_bucket.input[0].labels == tomap({ team = "vision" }) && google_pubsub_topic.photos.labels == tomap({ team = "vision" })
    error_message = "All resources that support labels have them."
  }
}

run "mounted_model" {
  variables {
    model_bucket = "models"
    model        = "/models/mine.onnx"
  }
  assert {
    condition     = alltrue([for service in google_cloud_run_v2_service.segment : service.template[0].volumes[0].gcs[0].bucket == "models" && service.template[0].volumes[0].gcs[0].read_only && service.template[0].containers[0].volume_mounts[0].mount_path == "/models"])
    error_message = "The bucket is mounted read-only in both services."
  }
  assert {
    condition     = google_cloud_run_v2_job.backfill.template[0].template[0].volumes[0].gcs[0].bucket == "models" && google_cloud_run_v2_job.backfill.template[0].template[0].containers[0].volume_mounts[0].mount_path == "/models"
    error_message = "The bucket is mounted read-only in the job."
  }
}

run "first_generation" {
  variables {
    generation  = 1
    cpu         = 0.5
    memory_mib  = 256
    concurrency = 1
  }
  assert {
    condition     = alltrue([for service in google_cloud_run_v2_service.segment : service.template[0].execution_environment == "EXECUTION_ENVIRONMENT_GEN1" && service.template[0].containers[0].resources[0].limits == tomap({ cpu = "0.5", memory = "256Mi" })])
    error_message = "The services have less memory than the second generation allows."
  }
  assert {
    condition     = { for env in google_cloud_run_v2_job.backfill.template[0].template[0].containers[0].env : env.name => env.value if contains(["SEGMENT_MEMORY", "SEGMENT_THREADS"], env.name) } == { SEGMENT_MEMORY = "512Mi", SEGMENT_THREADS = "1" }
    error_message = "The job, which always uses the second generation, has that generation's minimum memory as its setting."
  }
}

run "existing_buckets" {
  variables {
    input_bucket         = "photos"
    input_project        = "photos-project"
    create_input_bucket  = false
    output_bucket        = "results"
    create_output_bucket = false
    create_repository    = false
    enable_apis          = false
    alerts               = false
  }
  assert {
    condition     = length(google_storage_bucket.input) + length(google_storage_bucket.output) + length(google_artifact_registry_repository.images) + length(google_project_service.used) + length(google_monitoring_alert_policy.memory_kills) + length(google_monitoring_alert_policy.failed_events) + length(google_monitoring_alert_policy.dead_letters) + length(google_monitoring_alert_policy.oldest_photo) + length(google_monitoring_alert_policy.backfill) == 0
    error_message = "Existing buckets and the repository are not created."
  }
  assert {
    condition     = [google_storage_notification.photos.bucket, google_storage_bucket_iam_member.reads_photos.bucket, google_storage_bucket_iam_member.creates_results.bucket, google_storage_bucket_iam_member.reads_results.bucket] == ["photos", "photos", "results", "results"]
    error_message = "The existing buckets are used for notifications, reading and writing."
  }
  assert {
    condition     = data.google_storage_project_service_account.input.project == "photos-project"
    error_message = "The service agent of the bucket's project may publish notifications."
  }
  assert {
    condition     = output.input_bucket == "photos" && output.output_bucket == "results" && output.repository == null
    error_message = "The outputs contain the existing buckets."
  }
}

run "retention_and_mails" {
  variables {
    input_retention_days  = 30
    output_retention_days = 90
    force_destroy         = true
    deletion_protection   = true
    alert_emails          = ["me@example.com"]
    budget                = { billing_account = "012345-6789AB-CDEF01", amount = 20 }
  }
  assert {
    condition     = [for bucket in [google_storage_bucket.input[0], google_storage_bucket.output[0]] : [one(bucket.lifecycle_rule[1].action).type, one(bucket.lifecycle_rule[1].condition).age]] == [["Delete", 30], ["Delete", 90]]
    error_message = "Photos and results are deleted after the given number of days."
  }
  assert {
    condition     = google_storage_bucket.input[0].force_destroy && google_storage_bucket.output[0].force_destroy && google_cloud_run_v2_job.backfill.deletion_protection
    error_message = "Both retention periods can be set."
  }
  assert {
    condition     = google_monitoring_notification_channel.email["me@example.com"].labels == tomap({ email_address = "me@example.com" }) && length(google_monitoring_alert_policy.memory_kills[0].notification_channels) == 1 && length(google_monitoring_alert_policy.dead_letters[0].notification_channels) == 1
    error_message = "Alert policies have the mail addresses as notification channels."
  }
  assert {
    condition     = google_billing_budget.month[0].amount[0].specified_amount[0].units == "20" && google_billing_budget.month[0].budget_filter[0].projects == toset(["projects/123456789012"]) && [for rule in google_billing_budget.month[0].threshold_rules : rule.threshold_percent] == [0.5, 0.9, 1]
    error_message = "The budget covers this project, with thresholds of 50, 90 and 100 %."
  }
}

run "outputs" {
  assert {
    condition     = output.url == google_cloud_run_v2_service.segment["http"].uri && output.repository == "us-central1-docker.pkg.dev/my-project/segment" && output.services == { http = "segment", events = "segment-events" } && output.backfill_job == "segment-backfill" && output.dead_letters == "segment-dead"
    error_message = "The outputs contain the created resources."
  }
}

run "minimal_example" {
  module { source = "./examples/minimal" }
  assert {
    condition     = output.input_bucket == "my-project-segment-input"
    error_message = "The minimal example creates the default deployment."
  }
}

run "full_example" {
  module { source = "./examples/full" }
  assert {
    condition     = output.segment.input_bucket == "shop-photos" && output.segment.output_bucket == "my-project-shop-output"
    error_message = "The full example uses its own names."
  }
}
