# The resources that a project id and an image create, with the defaults of all other variables.

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

run "services" {
  assert {
    condition     = google_cloud_run_v2_service.segment["http"].name == "segment" && google_cloud_run_v2_service.segment["events"].name == "segment-events"
    error_message = "The services are segment and segment-events."
  }
  assert {
    condition     = alltrue([for service in google_cloud_run_v2_service.segment : service.project == "my-project" && service.location == "us-central1" && !service.deletion_protection])
    error_message = "Both services are in the project, in us-central1, and can be destroyed."
  }
  assert {
    condition     = alltrue([for service in google_cloud_run_v2_service.segment : service.template[0].containers[0].resources[0].limits == tomap({ cpu = "1", memory = "512Mi" })])
    error_message = "The default is the smallest second-generation instance: 1 CPU, 512Mi."
  }
  assert {
    condition     = alltrue([for service in google_cloud_run_v2_service.segment : service.template[0].containers[0].resources[0].cpu_idle && service.template[0].containers[0].resources[0].startup_cpu_boost])
    error_message = "CPU is billed during requests only, with a startup boost."
  }
  assert {
    condition     = alltrue([for service in google_cloud_run_v2_service.segment : service.template[0].execution_environment == "EXECUTION_ENVIRONMENT_GEN2"])
    error_message = "The default is the second generation."
  }
  assert {
    condition     = alltrue([for service in google_cloud_run_v2_service.segment : service.template[0].scaling[0].min_instance_count == 0 && service.template[0].scaling[0].max_instance_count == 10])
    error_message = "There are 0 to 10 instances."
  }
  assert {
    condition     = { for key, service in google_cloud_run_v2_service.segment : key => service.template[0].max_instance_request_concurrency } == { http = 4, events = 2 }
    error_message = "An instance handles 4 requests, or 2 photos of the bucket, at the same time."
  }
  assert {
    condition     = alltrue([for service in google_cloud_run_v2_service.segment : [for target in service.traffic : [target.type, target.percent]] == [["TRAFFIC_TARGET_ALLOCATION_TYPE_LATEST", 100]]])
    error_message = "An apply sends all requests to the new revision, also after a rollback with gcloud."
  }
  assert {
    condition     = alltrue([for service in google_cloud_run_v2_service.segment : service.template[0].timeout == "60s"])
    error_message = "The timeout of a request is 60 s."
  }
  assert {
    condition     = alltrue([for service in google_cloud_run_v2_service.segment : service.template[0].containers[0].startup_probe[0].http_get[0].path == "/ready" && service.template[0].containers[0].liveness_probe[0].http_get[0].path == "/health"])
    error_message = "The startup probe is GET /ready, the liveness probe GET /health."
  }
  assert {
    condition     = alltrue([for service in google_cloud_run_v2_service.segment : service.template[0].containers[0].startup_probe[0].period_seconds * service.template[0].containers[0].startup_probe[0].failure_threshold <= 240])
    error_message = "The startup probe fails after 240 s, Cloud Run's maximum."
  }
  assert {
    condition = {
      for key, service in google_cloud_run_v2_service.segment :
      key => { for env in service.template[0].containers[0].env : env.name => env.value }
      } == {
      http = {
        FUNCTION_TARGET      = "segment_http"
        SEGMENT_MEMORY       = "512Mi"
        SEGMENT_PROJECT      = "my-project"
        SEGMENT_THREADS      = "1"
        SEGMENT_WAIT_SECONDS = "30"
        THREADS              = "8"
      }
      events = {
        FUNCTION_TARGET          = "segment_object"
        SEGMENT_DELIVERY_SECONDS = "50"
        SEGMENT_INPUT_BUCKET     = "my-project-segment-input"
        SEGMENT_MEMORY           = "512Mi"
        SEGMENT_OUTPUT_BUCKET    = "my-project-segment-output"
        SEGMENT_OUTPUT_FORMATS   = "png,json"
        SEGMENT_PROJECT          = "my-project"
        SEGMENT_THREADS          = "1"
        SEGMENT_WAIT_SECONDS     = "30"
        THREADS                  = "6"
      }
    }
    error_message = "Only the function target, the size and the buckets are set in the environment."
  }
  assert {
    condition     = google_cloud_run_v2_service.segment["http"].ingress == "INGRESS_TRAFFIC_ALL" && google_cloud_run_v2_service.segment["events"].ingress == "INGRESS_TRAFFIC_INTERNAL_ONLY"
    error_message = "The ingress of the HTTP service is all, of the events service internal."
  }
  assert {
    condition     = alltrue([for service in google_cloud_run_v2_service.segment : length(service.template[0].volumes) == 0 && length(service.template[0].containers[0].volume_mounts) == 0])
    error_message = "No bucket with models is mounted."
  }
}

run "private" {
  assert {
    condition     = length(google_cloud_run_v2_service_iam_member.callers) == 0
    error_message = "The HTTP service has no invokers."
  }
}

run "job" {
  assert {
    condition     = google_cloud_run_v2_job.backfill.name == "segment-backfill" && google_cloud_run_v2_job.backfill.template[0].task_count == 4 && google_cloud_run_v2_job.backfill.template[0].parallelism == 4
    error_message = "The job has 4 parallel tasks."
  }
  assert {
    condition     = google_cloud_run_v2_job.backfill.template[0].template[0].containers[0].command == tolist(["python"]) && google_cloud_run_v2_job.backfill.template[0].template[0].containers[0].args == tolist(["-m", "segment", "backfill", "gs://my-project-segment-input/"])
    error_message = "The job runs the backfill command on the input bucket."
  }
  assert {
    condition     = google_cloud_run_v2_job.backfill.template[0].template[0].timeout == "86400s" && google_cloud_run_v2_job.backfill.template[0].template[0].max_retries == 3
    error_message = "A task may run for a day, and is retried 3 times."
  }
  assert {
    condition = { for env in google_cloud_run_v2_job.backfill.template[0].template[0].containers[0].env : env.name => env.value } == {
      SEGMENT_INPUT_BUCKET   = "my-project-segment-input"
      SEGMENT_MEMORY         = "512Mi"
      SEGMENT_OUTPUT_BUCKET  = "my-project-segment-output"
      SEGMENT_OUTPUT_FORMATS = "png,json"
      SEGMENT_PROJECT        = "my-project"
      SEGMENT_THREADS        = "1"
      SEGMENT_WAIT_SECONDS   = "30"
    }
    error_message = "The job has the events service's settings."
  }
}

run "storage" {
  assert {
    condition     = google_storage_bucket.input[0].name == "my-project-segment-input" && google_storage_bucket.output[0].name == "my-project-segment-output"
    error_message = "Bucket names consist of the project's id, which is unique, and the deployment's name."
  }
  assert {
    condition     = alltrue([for bucket in [google_storage_bucket.input[0], google_storage_bucket.output[0]] : bucket.uniform_bucket_level_access && bucket.public_access_prevention == "enforced" && !bucket.force_destroy])
    error_message = "Buckets have uniform access, prevent public access, and are not destroyed with their contents."
  }
  assert {
    condition     = alltrue([for bucket in [google_storage_bucket.input[0], google_storage_bucket.output[0]] : length(bucket.lifecycle_rule) == 1 && one(bucket.lifecycle_rule[0].action).type == "AbortIncompleteMultipartUpload"])
    error_message = "Only incomplete uploads are deleted automatically."
  }
  assert {
    condition     = google_storage_bucket.output[0].soft_delete_policy[0].retention_duration_seconds == 0
    error_message = "Soft delete is disabled for results."
  }
  assert {
    condition     = google_artifact_registry_repository.images[0].format == "DOCKER" && google_artifact_registry_repository.images[0].cleanup_policies != null && !google_artifact_registry_repository.images[0].cleanup_policy_dry_run
    error_message = "The repository keeps the latest images."
  }
}

run "monitoring" {
  assert {
    condition     = [for policies in [google_monitoring_alert_policy.memory_kills, google_monitoring_alert_policy.failed_events, google_monitoring_alert_policy.dead_letters, google_monitoring_alert_policy.oldest_photo, google_monitoring_alert_policy.backfill] : length(policies)] == [1, 1, 1, 1, 1]
    error_message = "There are five alert policies."
  }
  assert {
    condition     = strcontains(google_monitoring_alert_policy.oldest_photo[0].conditions[0].condition_threshold[0].filter, "subscription_id=\"segment-photos\"") && google_monitoring_alert_policy.oldest_photo[0].conditions[0].condition_threshold[0].threshold_value == 3600
    error_message = "An alert fires when the oldest photo has waited for an hour."
  }
  assert {
    condition     = strcontains(google_monitoring_alert_policy.backfill[0].conditions[0].condition_prometheus_query_language[0].query, "job_name=\"segment-backfill\",result=\"failed\"")
    error_message = "An alert fires when an execution of the backfill job fails."
  }
  assert {
    condition     = strcontains(google_logging_metric.memory_kills.filter, "textPayload=~\"Memory limit of .* exceeded\"") && strcontains(google_logging_metric.memory_kills.filter, "(\"segment\" OR \"segment-events\")") && strcontains(google_logging_metric.memory_kills.filter, "\"segment-backfill\"")
    error_message = "The metric counts memory kills of both services and the job."
  }
  assert {
    condition     = [for condition in google_monitoring_alert_policy.memory_kills[0].conditions : strcontains(condition.condition_prometheus_query_language[0].query, ":user_segment_memory_kills{")] == [true, true]
    error_message = "The alert policy uses that metric for services and jobs."
  }
  assert {
    condition     = strcontains(google_monitoring_alert_policy.failed_events[0].conditions[0].condition_matched_log[0].filter, "service_name=\"segment-events\"") && strcontains(google_monitoring_alert_policy.failed_events[0].documentation[0].content, "gcloud run jobs execute segment-backfill --project my-project --region us-central1")
    error_message = "An alert fires when the events service logs an error, and says how to segment the photos."
  }
  assert {
    condition     = strcontains(google_monitoring_alert_policy.dead_letters[0].conditions[0].condition_threshold[0].filter, "subscription_id=\"segment-dead\"")
    error_message = "The alert policy uses the dead letters' subscription."
  }
  assert {
    condition     = length(google_billing_budget.month) == 0 && length(google_monitoring_notification_channel.email) == 0
    error_message = "There is no budget and no notification channel."
  }
}

run "googles_keys" {
  assert {
    condition     = length(google_kms_crypto_key_iam_member.encrypts) + length(google_project_service_identity.encrypts) + length(google_storage_bucket.input[0].encryption) + length(google_storage_bucket.output[0].encryption) == 0
    error_message = "Without kms_key, nothing refers to a key."
  }
}

run "apis" {
  assert {
    condition     = length(google_project_service.used) == 8 && alltrue([for api in google_project_service.used : !api.disable_on_destroy])
    error_message = "The required APIs are enabled, and stay enabled."
  }
}
