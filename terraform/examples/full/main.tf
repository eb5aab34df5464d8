# A production deployment for a shop: its own model, photos in an existing bucket, a page for its staff, alerts by mail, and
# results that are deleted after 90 days.

terraform {
  required_version = ">= 1.9"

  required_providers {
    google = {
      source = "hashicorp/google"
    }
    google-beta = {
      source = "hashicorp/google-beta"
    }
  }

  # backend "gcs" { bucket = "shop-terraform-state" }
}

variable "project_id" {
  description = "Google Cloud project to deploy to."
  type        = string
}

variable "image" {
  description = "Image built from this repository's Dockerfile, with its tag."
  type        = string
}

variable "billing_account" {
  description = "Billing account that the budget watches."
  type        = string
}

provider "google" {
  project = var.project_id

  # Budgets belong to the billing account: without these two, a user's own login is charged to no project and refused.
  billing_project       = var.project_id
  user_project_override = true
}

provider "google-beta" {
  project               = var.project_id
  billing_project       = var.project_id
  user_project_override = true
}

module "segment" {
  source = "../.."

  project_id = var.project_id
  image      = var.image
  region     = "europe-west1"
  name       = "shop"
  labels     = { team = "catalogue" }

  # Twice the memory and CPU, for a larger render factor.
  memory_mib      = 1024
  cpu             = 2
  concurrency     = 8
  timeout_seconds = 120
  wait_seconds    = 60
  min_instances   = 1
  max_instances   = 20

  invokers     = ["group:staff@shop.example"]
  cors_origins = ["https://studio.shop.example"]

  model_bucket  = "shop-models"
  model         = "/models/products.onnx"
  render_factor = "50"
  min_score     = 0.6
  environment   = { SEGMENT_QUEUE = "32" }

  input_bucket          = "shop-photos"
  create_input_bucket   = false
  input_prefix          = "products/"
  output_formats        = ["webp", "json", "cutouts"]
  output_prefix         = "segmented/"
  output_retention_days = 90

  ack_deadline_seconds  = 180
  max_delivery_attempts = 30
  events_max_instances  = 50
  backfill_tasks        = 20

  alert_emails = ["oncall@shop.example"]
  budget       = { billing_account = var.billing_account, amount = 100 }
}

output "segment" {
  description = "All outputs of the module."
  value       = module.segment
}
