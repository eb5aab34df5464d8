# The buckets for photos and results, and the repository of the image.

locals {
  default_output_bucket = "${var.project_id}-${var.name}-output"

  input_bucket  = coalesce(var.input_bucket, "${var.project_id}-${var.name}-input")
  output_bucket = coalesce(var.output_bucket, local.default_output_bucket)

  # The same names for resources that need the bucket to exist: if it is created here, they depend on it.
  input_bucket_ready  = var.create_input_bucket ? google_storage_bucket.input[0].name : local.input_bucket
  output_bucket_ready = var.create_output_bucket ? google_storage_bucket.output[0].name : local.output_bucket
}

resource "google_storage_bucket" "input" {
  #checkov:skip=CKV_GCP_62:access logs are not worth their cost here; audit logs can be enabled in the project
  #checkov:skip=CKV_GCP_78:soft delete, enabled by default, restores deleted or overwritten objects for a week
  count = var.create_input_bucket ? 1 : 0

  project                     = var.project_id
  location                    = var.region
  name                        = local.input_bucket
  labels                      = var.labels
  uniform_bucket_level_access = true
  public_access_prevention    = "enforced"
  force_destroy               = var.force_destroy

  dynamic "encryption" {
    for_each = var.kms_key[*]
    content {
      default_kms_key_name = encryption.value
    }
  }

  lifecycle_rule {
    condition {
      age = 1
    }
    action {
      type = "AbortIncompleteMultipartUpload"
    }
  }

  dynamic "lifecycle_rule" {
    for_each = var.input_retention_days == null ? [] : [var.input_retention_days]
    content {
      condition {
        age = lifecycle_rule.value
      }
      action {
        type = "Delete"
      }
    }
  }

  depends_on = [google_project_service.used, google_kms_crypto_key_iam_member.encrypts]
}

resource "google_storage_bucket" "output" {
  #checkov:skip=CKV_GCP_62:access logs are not worth their cost here; audit logs can be enabled in the project
  #checkov:skip=CKV_GCP_78:results can be recreated from the photos
  count = var.create_output_bucket ? 1 : 0

  project                     = var.project_id
  location                    = var.region
  name                        = local.output_bucket
  labels                      = var.labels
  uniform_bucket_level_access = true
  public_access_prevention    = "enforced"
  force_destroy               = var.force_destroy

  dynamic "encryption" {
    for_each = var.kms_key[*]
    content {
      default_kms_key_name = encryption.value
    }
  }

  # Results can be recreated from the photos, so deleted ones are not kept for a week.
  soft_delete_policy {
    retention_duration_seconds = 0
  }

  lifecycle_rule {
    condition {
      age = 1
    }
    action {
      type = "AbortIncompleteMultipartUpload"
    }
  }

  dynamic "lifecycle_rule" {
    for_each = var.output_retention_days == null ? [] : [var.output_retention_days]
    content {
      condition {
        age = lifecycle_rule.value
      }
      action {
        type = "Delete"
      }
    }
  }

  depends_on = [google_project_service.used, google_kms_crypto_key_iam_member.encrypts]
}

resource "google_artifact_registry_repository" "images" {
  #checkov:skip=CKV_GCP_84:kms_key is optional, as the image contains no secrets
  count = var.create_repository ? 1 : 0

  project                = var.project_id
  location               = var.region
  repository_id          = var.name
  description            = "Images of ${var.name}"
  format                 = "DOCKER"
  labels                 = var.labels
  kms_key_name           = var.kms_key
  cleanup_policy_dry_run = false

  # A version is deleted if a policy deletes it and no policy keeps it.
  cleanup_policies {
    id     = "keep-latest"
    action = "KEEP"
    most_recent_versions {
      keep_count = var.keep_images
    }
  }
  cleanup_policies {
    id     = "delete-the-rest"
    action = "DELETE"
    condition {
      older_than = "86400s"
    }
  }

  depends_on = [google_project_service.used, google_kms_crypto_key_iam_member.encrypts]
}
