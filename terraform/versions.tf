terraform {
  required_version = ">= 1.9" # validations that compare one variable with another

  required_providers {
    google = {
      source  = "hashicorp/google"
      version = ">= 6.50, < 8"
    }
    google-beta = { # for google_project_service_identity, which is in no other
      source  = "hashicorp/google-beta"
      version = ">= 6.50, < 8"
    }
  }
}
