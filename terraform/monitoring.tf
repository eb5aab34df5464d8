# Alerts: an instance ran out of memory, a bucket event failed for good, a photo became a dead letter, photos wait for too long,
# a backfill job failed.

resource "google_monitoring_notification_channel" "email" {
  for_each = var.alert_emails

  project      = var.project_id
  display_name = "${var.name}: ${each.value}"
  type         = "email"
  labels       = { email_address = each.value }

  depends_on = [google_project_service.used]
}

locals {
  notification_channels = values(google_monitoring_notification_channel.email)[*].id
}

# Counts Cloud Run's own log line: Memory limit of 512 MiB exceeded with 520 MiB used.
resource "google_logging_metric" "memory_kills" {
  project     = var.project_id
  name        = "${var.name}-memory-kills"
  description = "Instances of ${var.name} that Cloud Run stopped because they exceeded their memory limit"
  filter      = <<-EOT
    (
      (resource.type="cloud_run_revision" AND resource.labels.service_name=("${var.name}" OR "${var.name}-events"))
      OR (resource.type="cloud_run_job" AND resource.labels.job_name="${var.name}-backfill")
    )
    AND textPayload=~"Memory limit of .* exceeded"
  EOT

  metric_descriptor {
    metric_kind = "DELTA"
    value_type  = "INT64"
    unit        = "1"
  }

  depends_on = [google_project_service.used]
}

resource "google_monitoring_alert_policy" "memory_kills" {
  count = var.alerts ? 1 : 0

  project               = var.project_id
  display_name          = "${var.name}: out of memory"
  combiner              = "OR"
  severity              = "ERROR"
  user_labels           = var.labels
  notification_channels = local.notification_channels

  # PromQL, because only it allows a policy to be created before its metric has a value. A threshold on a new log metric is
  # rejected, and the first apply would fail.
  dynamic "conditions" {
    for_each = { service = "cloud_run_revision", job = "cloud_run_job" }
    content {
      display_name = "A ${conditions.key} instance was killed"
      condition_prometheus_query_language {
        query                     = "sum(increase(logging_googleapis_com:user_${replace(google_logging_metric.memory_kills.name, "-", "_")}{monitored_resource=\"${conditions.value}\"}[5m])) > 0"
        duration                  = "0s"
        evaluation_interval       = "60s"
        disable_metric_validation = true
      }
    }
  }

  documentation {
    mime_type = "text/markdown"
    content   = <<-EOT
      Cloud Run ended an instance of ${var.name} because it used more than its ${local.memory}.
      The memory budget should prevent this: please report it with the request that caused it. Until then, raise `memory_mib`,
      or lower `concurrency` or `render_factor`.
    EOT
  }
}

# An event whose photo cannot be processed until somebody intervenes is acknowledged with an entry of severity ERROR, so that
# neither dead letters nor waiting photos show it. Only entries of the service's own log count: Cloud Run logs each response
# with status 5xx as an ERROR, too.
resource "google_monitoring_alert_policy" "failed_events" {
  count = var.alerts ? 1 : 0

  project               = var.project_id
  display_name          = "${var.name}: bucket events failed"
  combiner              = "OR"
  severity              = "ERROR"
  user_labels           = var.labels
  notification_channels = local.notification_channels

  conditions {
    display_name = "${var.name}-events logged an error"
    condition_matched_log {
      filter = <<-EOT
        resource.type="cloud_run_revision"
        AND resource.labels.service_name="${var.name}-events"
        AND logName="projects/${var.project_id}/logs/run.googleapis.com%2Fstdout"
        AND severity>=ERROR
      EOT
    }
  }

  alert_strategy {
    auto_close = "86400s"
    notification_rate_limit {
      period = "3600s" # one mail per hour, however many photos fail
    }
  }

  documentation {
    mime_type = "text/markdown"
    content   = <<-EOT
      The entry names the photo and the reason, such as a bucket that does not exist, a missing permission or a missing model.
      Its event may have been acknowledged, so the photo is not delivered again. Fix the cause, then segment the photos that
      have no results: `gcloud run jobs execute ${google_cloud_run_v2_job.backfill.name} --project ${var.project_id} --region ${var.region}`.
    EOT
  }

  depends_on = [google_project_service.used]
}

resource "google_monitoring_alert_policy" "dead_letters" {
  count = var.alerts ? 1 : 0

  project               = var.project_id
  display_name          = "${var.name}: dead letters"
  combiner              = "OR"
  severity              = "ERROR"
  user_labels           = var.labels
  notification_channels = local.notification_channels

  conditions {
    display_name = "Photos became dead letters after ${var.max_delivery_attempts} deliveries"
    condition_threshold {
      filter          = "resource.type=\"pubsub_subscription\" AND resource.labels.subscription_id=\"${google_pubsub_subscription.dead.name}\" AND metric.type=\"pubsub.googleapis.com/subscription/num_undelivered_messages\""
      comparison      = "COMPARISON_GT"
      threshold_value = 0
      duration        = "0s"

      aggregations {
        alignment_period   = "300s"
        per_series_aligner = "ALIGN_MAX"
      }
    }
  }

  documentation {
    mime_type = "text/markdown"
    content   = <<-EOT
      Each message names a photo: `gcloud pubsub subscriptions pull ${var.name}-dead --project ${var.project_id} --limit 10`.
      Look for its name in the log of `${var.name}-events` and fix the cause. Then deliver the dead letters again:
      `gcloud run jobs execute ${google_cloud_run_v2_job.backfill.name} --project ${var.project_id} --region ${var.region} --args=-m,segment,backfill,--redrive,${google_pubsub_subscription.dead.id}`.
    EOT
  }
}

resource "google_monitoring_alert_policy" "oldest_photo" {
  count = var.alerts ? 1 : 0

  project               = var.project_id
  display_name          = "${var.name}: photos wait"
  combiner              = "OR"
  severity              = "WARNING"
  user_labels           = var.labels
  notification_channels = local.notification_channels

  conditions {
    display_name = "A photo has waited for more than ${var.oldest_photo_minutes} minutes"
    condition_threshold {
      filter          = "resource.type=\"pubsub_subscription\" AND resource.labels.subscription_id=\"${google_pubsub_subscription.photos.name}\" AND metric.type=\"pubsub.googleapis.com/subscription/oldest_unacked_message_age\""
      comparison      = "COMPARISON_GT"
      threshold_value = var.oldest_photo_minutes * 60
      duration        = "0s"

      aggregations {
        alignment_period   = "60s"
        per_series_aligner = "ALIGN_MAX"
      }
    }
  }

  documentation {
    mime_type = "text/markdown"
    content   = <<-EOT
      The oldest photo of `${google_pubsub_subscription.photos.name}` has not been segmented for ${var.oldest_photo_minutes} minutes.
      Either its deliveries fail (the log of `${var.name}-events` has the reason), or photos arrive faster than they are
      segmented: raise `events_max_instances`.
    EOT
  }
}

resource "google_monitoring_alert_policy" "backfill" {
  count = var.alerts ? 1 : 0

  project               = var.project_id
  display_name          = "${var.name}: backfill failed"
  combiner              = "OR"
  severity              = "ERROR"
  user_labels           = var.labels
  notification_channels = local.notification_channels

  # PromQL: the metric has no value before the job's first execution.
  conditions {
    display_name = "An execution of ${google_cloud_run_v2_job.backfill.name} failed"
    condition_prometheus_query_language {
      query                     = "sum(increase(run_googleapis_com:job_completed_execution_count{monitored_resource=\"cloud_run_job\",job_name=\"${google_cloud_run_v2_job.backfill.name}\",result=\"failed\"}[5m])) > 0"
      duration                  = "0s"
      evaluation_interval       = "60s"
      disable_metric_validation = true
    }
  }

  documentation {
    mime_type = "text/markdown"
    content   = <<-EOT
      The log of the job `${google_cloud_run_v2_job.backfill.name}` names the photos that failed and why. Execute it again after the
      cause is fixed: photos that have results are skipped.
    EOT
  }
}

resource "google_billing_budget" "month" {
  count = var.budget == null ? 0 : 1

  billing_account = var.budget.billing_account
  display_name    = "${var.name}: ${var.project_id}"

  budget_filter {
    projects = ["projects/${data.google_project.this.number}"]
  }

  amount {
    specified_amount {
      units = tostring(var.budget.amount)
    }
  }

  dynamic "threshold_rules" {
    for_each = [0.5, 0.9, 1.0]
    content {
      threshold_percent = threshold_rules.value
    }
  }

  # Channels on top of the mail to the billing account's administrators; the API refuses an empty list.
  dynamic "all_updates_rule" {
    for_each = length(var.alert_emails) > 0 ? [1] : []
    content {
      monitoring_notification_channels = local.notification_channels
    }
  }

  lifecycle {
    precondition {
      condition     = length(var.alert_emails) <= 5
      error_message = "alert_emails must be at most 5 addresses with a budget: it accepts no more. Use the address of a group."
    }
  }

  depends_on = [google_project_service.used]
}
