# Two services and a job from one image. They differ in the function target, in their callers and in their permissions.

locals {
  # Cloud Run's minimum and maximum memory by number of CPUs, in MiB.
  most_memory_mib = (
    var.cpu >= 8 ? 32768 :
    var.cpu >= 6 ? 24576 :
    var.cpu >= 4 ? 16384 :
    var.cpu >= 2 ? 8192 :
    var.cpu >= 1 ? 4096 :
    var.cpu >= 0.5 ? 1024 : 512
  )
  least_memory_mib = var.cpu >= 6 ? 4096 : var.cpu >= 4 ? 2048 : 128

  # Jobs always use the second generation and its minimum memory.
  memory     = "${var.memory_mib}Mi"
  job_memory = "${max(512, var.memory_mib)}Mi"
  job_cpu    = max(1, var.cpu)

  # Settings; null means the service's default. Memory and threads are set explicitly, because the limits that are visible
  # inside a container differ between the two generations.
  common_settings = {
    SEGMENT_MODEL          = var.model
    SEGMENT_RENDER_FACTOR  = var.render_factor
    SEGMENT_FIT            = var.fit
    SEGMENT_MIN_SCORE      = var.min_score
    SEGMENT_MAX_DETECTIONS = var.max_detections
    SEGMENT_WAIT_SECONDS   = var.wait_seconds
    SEGMENT_PROJECT        = var.project_id
  }
  http_settings = {
    SEGMENT_CORS_ORIGINS = length(var.cors_origins) > 0 ? join(",", var.cors_origins) : null
  }
  bucket_settings = {
    SEGMENT_INPUT_BUCKET   = local.input_bucket
    SEGMENT_INPUT_PREFIX   = var.input_prefix != "" ? var.input_prefix : null
    SEGMENT_OUTPUT_BUCKET  = local.output_bucket
    SEGMENT_OUTPUT_PREFIX  = var.output_prefix != "" ? var.output_prefix : null
    SEGMENT_OUTPUT_FORMATS = join(",", var.output_formats)
  }
  # A delivery may exceed this by one stage of the pipeline and one storage call, and must still end before timeout_seconds.
  events_settings = merge(local.bucket_settings, { SEGMENT_DELIVERY_SECONDS = max(1, var.timeout_seconds - 10) })
  service_size    = { SEGMENT_MEMORY = local.memory, SEGMENT_THREADS = ceil(var.cpu) }
  job_size        = { SEGMENT_MEMORY = local.job_memory, SEGMENT_THREADS = local.job_cpu }
  own_settings    = keys(merge(local.common_settings, local.http_settings, local.events_settings, local.service_size))

  services = {
    http = {
      name            = var.name
      target          = "segment_http"
      settings        = local.http_settings
      service_account = google_service_account.http.email
      public          = var.public
      ingress = {
        all           = "INGRESS_TRAFFIC_ALL"
        internal      = "INGRESS_TRAFFIC_INTERNAL_ONLY"
        load-balancer = "INGRESS_TRAFFIC_INTERNAL_LOAD_BALANCER"
      }[var.ingress]
      min_instances = var.min_instances
      max_instances = var.max_instances
      concurrency   = var.concurrency
    }
    events = {
      name            = "${var.name}-events"
      target          = "segment_object"
      settings        = local.events_settings
      service_account = google_service_account.bucket.email
      public          = false
      ingress         = "INGRESS_TRAFFIC_INTERNAL_ONLY" # Pub/Sub of the same project counts as internal
      min_instances   = 0
      max_instances   = var.events_max_instances
      concurrency     = coalesce(var.events_concurrency, min(2, var.concurrency))
    }
  }
}

resource "google_cloud_run_v2_service" "segment" {
  for_each = local.services

  project             = var.project_id
  location            = var.region
  name                = each.value.name
  labels              = var.labels
  ingress             = each.value.ingress
  deletion_protection = var.deletion_protection

  # Instead of a grant to allUsers, which organizations with domain restricted sharing (the default of new ones) refuse.
  invoker_iam_disabled = each.value.public

  # Without this block, the provider would keep what a rollback with gcloud has set, and new revisions would get no requests.
  traffic {
    type    = "TRAFFIC_TARGET_ALLOCATION_TYPE_LATEST"
    percent = 100
  }

  template {
    labels                           = var.labels
    service_account                  = each.value.service_account
    encryption_key                   = var.kms_key
    execution_environment            = "EXECUTION_ENVIRONMENT_GEN${var.generation}"
    max_instance_request_concurrency = each.value.concurrency
    timeout                          = "${var.timeout_seconds}s"

    scaling {
      min_instance_count = each.value.min_instances
      max_instance_count = each.value.max_instances
    }

    containers {
      image = var.image

      ports {
        container_port = 8080
      }

      resources {
        limits            = { cpu = tostring(var.cpu), memory = local.memory }
        cpu_idle          = true # pay for requests, not for the time between them
        startup_cpu_boost = true
      }

      # /ready loads the model and returns 200 when it is loaded. The default TCP probe passes as soon as the port is open,
      # so that the first requests would wait for the model.
      startup_probe {
        http_get {
          path = "/ready"
        }
        period_seconds    = 1
        timeout_seconds   = 1
        failure_threshold = 240 # seconds: Cloud Run's longest
      }

      liveness_probe {
        http_get {
          path = "/health"
        }
        period_seconds    = 30
        timeout_seconds   = 10
        failure_threshold = 3
      }

      dynamic "env" {
        for_each = {
          for name, value in merge(
            # Requests that wait for memory occupy threads; four additional threads answer the probes.
            { FUNCTION_TARGET = each.value.target, THREADS = each.value.concurrency + 4 },
            local.service_size, local.common_settings, each.value.settings, var.environment,
          ) : name => tostring(value) if value != null
        }
        content {
          name  = env.key
          value = env.value
        }
      }

      dynamic "volume_mounts" {
        for_each = var.model_bucket == null ? [] : ["/models"]
        content {
          name       = "models"
          mount_path = volume_mounts.value
        }
      }
    }

    dynamic "volumes" {
      for_each = var.model_bucket == null ? [] : [var.model_bucket]
      content {
        name = "models"
        gcs {
          bucket    = volumes.value
          read_only = true
        }
      }
    }
  }

  lifecycle {
    ignore_changes = [client, client_version] # what gcloud and the console write
  }

  depends_on = [
    google_project_service.used,
    google_kms_crypto_key_iam_member.encrypts,
    google_storage_bucket_iam_member.model, # or the first start cannot mount it
  ]
}

# Segments photos that were in the bucket before: gcloud run jobs execute NAME-backfill
resource "google_cloud_run_v2_job" "backfill" {
  project             = var.project_id
  location            = var.region
  name                = "${var.name}-backfill"
  labels              = var.labels
  deletion_protection = var.deletion_protection

  template {
    task_count  = var.backfill_tasks
    parallelism = var.backfill_tasks
    labels      = var.labels

    template {
      service_account = google_service_account.bucket.email
      encryption_key  = var.kms_key
      timeout         = "${var.backfill_hours * 3600}s"
      max_retries     = 3

      containers {
        image   = var.image
        command = ["python"]
        args = concat(
          ["-m", "segment", "backfill", "gs://${local.input_bucket}/${var.input_prefix}"],
          length(var.backfill_dataset) > 0 ? ["--dataset", join(",", var.backfill_dataset)] : [],
          var.backfill_dataset_only ? ["--dataset-only"] : [],
        )

        resources {
          limits = { cpu = tostring(local.job_cpu), memory = local.job_memory }
        }

        dynamic "env" {
          for_each = {
            for name, value in merge(local.job_size, local.common_settings, local.bucket_settings, var.environment) :
            name => tostring(value) if value != null
          }
          content {
            name  = env.key
            value = env.value
          }
        }

        dynamic "volume_mounts" {
          for_each = var.model_bucket == null ? [] : ["/models"]
          content {
            name       = "models"
            mount_path = volume_mounts.value
          }
        }
      }

      dynamic "volumes" {
        for_each = var.model_bucket == null ? [] : [var.model_bucket]
        content {
          name = "models"
          gcs {
            bucket    = volumes.value
            read_only = true
          }
        }
      }
    }
  }

  lifecycle {
    ignore_changes = [client, client_version]
  }

  depends_on = [
    google_project_service.used,
    google_kms_crypto_key_iam_member.encrypts,
    google_storage_bucket_iam_member.model,
  ]
}
