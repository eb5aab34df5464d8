# The smallest deployment: only a project and an image are given. All defaults are the cheapest that work.

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
}

variable "project_id" {
  description = "Google Cloud project to deploy to."
  type        = string
}

variable "image" {
  description = "Image built from this repository's Dockerfile, with its tag."
  type        = string
}

module "segment" {
  source = "../.."

  project_id = var.project_id
  image      = var.image
}

output "url" {
  description = "Address of the HTTP service."
  value       = module.segment.url
}

output "input_bucket" {
  description = "Bucket to drop photos into."
  value       = module.segment.input_bucket
}

output "output_bucket" {
  description = "Bucket that results appear in."
  value       = module.segment.output_bucket
}
