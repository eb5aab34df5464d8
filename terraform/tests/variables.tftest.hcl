# Every validation rule of variables.tf: values at the limit that are valid, then values beyond it that are refused. A run must
# produce all failures that it expects, so one run can violate the rules of many variables. A rule that compares two variables is
# only evaluated if both are valid by themselves, so these rules have separate runs.

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

# Valid values.

run "accepts_minimum_values" {
  command = plan
  variables {
    project_id            = "abcdef"
    image                 = "docker.io/me/segment:1@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
    name                  = "ab"
    region                = "europe-west1"
    labels                = { a = "" }
    keep_images           = 1
    generation            = 1
    cpu                   = 0.08
    concurrency           = 1
    memory_mib            = 128
    timeout_seconds       = 10
    wait_seconds          = 0
    min_instances         = 0
    max_instances         = 1
    events_max_instances  = 1
    events_concurrency    = 1
    oldest_photo_minutes  = 5
    invokers              = []
    ingress               = "internal"
    cors_origins          = ["*"]
    model                 = "m"
    render_factor         = "4"
    fit                   = "square"
    min_score             = 0
    max_detections        = 1
    environment           = {}
    input_bucket          = "abc"
    input_prefix          = "p"
    input_retention_days  = 1
    output_bucket         = "abd"
    output_prefix         = "p"
    output_formats        = ["json"]
    output_retention_days = 1
    ack_deadline_seconds  = 10
    max_delivery_attempts = 5
    dead_letter_days      = 1
    backfill_tasks        = 1
    backfill_hours        = 1
    alert_emails          = []
    budget                = { billing_account = "012345-6789AB-CDEF01", amount = 1 }
  }
  assert {
    condition     = google_cloud_run_v2_job.backfill.template[0].template[0].containers[0].resources[0].limits == tomap({ cpu = "1", memory = "512Mi" })
    error_message = "A job has a whole CPU and 512Mi at least, whatever the services have."
  }
}

run "accepts_maximum_values" {
  command = plan
  variables {
    project_id            = "a23456789012345678901234567890"
    image                 = "europe-docker.pkg.dev/p/r/i@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
    name                  = "a-345678901234567890"
    region                = "northamerica-northeast2"
    labels                = { team = "vision", cost-centre = "42" }
    keep_images           = 1000
    generation            = 2
    cpu                   = 8
    concurrency           = 80
    memory_mib            = 32768
    timeout_seconds       = 600
    wait_seconds          = 595
    min_instances         = 1000
    max_instances         = 1000
    events_max_instances  = 1000
    events_concurrency    = 80
    oldest_photo_minutes  = 1440
    invokers              = ["user:a@b.example", "group:a@b.example", "serviceAccount:a@b.iam.gserviceaccount.com", "domain:b.example", "principalSet://iam.googleapis.com/locations/global/workforcePools/p/group/g"]
    ingress               = "load-balancer"
    cors_origins          = ["https://a.example", "http://localhost:3000"]
    model                 = "/models/model.onnx"
    model_bucket          = "models"
    render_factor         = "256"
    fit                   = "aspect"
    min_score             = 1
    max_detections        = 1000
    environment           = { SEGMENT_QUEUE = "0" }
    input_bucket          = "in.example"
    create_input_bucket   = false
    input_project         = "photos-project"
    output_bucket         = "out.example"
    create_output_bucket  = false
    output_formats        = ["png", "jpeg", "webp", "json", "ids", "cutouts"]
    ack_deadline_seconds  = 600
    max_delivery_attempts = 100
    dead_letter_days      = 31
    backfill_tasks        = 100
    backfill_hours        = 168
    alert_emails          = [for n in range(16) : "${n}@b.example"]
  }
}

# Cloud Run's limits of memory by number of CPUs.
run "accepts_512_MiB_below_half_a_cpu" {
  command = plan
  variables {
    generation  = 1
    concurrency = 1
    cpu         = 0.49
    memory_mib  = 512
  }
}

run "accepts_1_GiB_with_half_a_cpu" {
  command = plan
  variables {
    generation  = 1
    concurrency = 1
    cpu         = 0.5
    memory_mib  = 1024
  }
}

run "accepts_4_GiB_with_1_cpu" {
  command = plan
  variables { memory_mib = 4096 }
}

run "accepts_8_GiB_with_2_cpus" {
  command = plan
  variables {
    cpu        = 2
    memory_mib = 8192
  }
}

run "accepts_2_GiB_with_4_cpus" {
  command = plan
  variables {
    cpu        = 4
    memory_mib = 2048
  }
}

run "accepts_16_GiB_with_4_cpus" {
  command = plan
  variables {
    cpu        = 4
    memory_mib = 16384
  }
}

run "accepts_4_GiB_with_6_cpus" {
  command = plan
  variables {
    cpu        = 6
    memory_mib = 4096
  }
}

run "accepts_24_GiB_with_6_cpus" {
  command = plan
  variables {
    cpu        = 6
    memory_mib = 24576
  }
}

run "accepts_render_factor_auto" {
  command = plan
  variables { render_factor = "auto" }
}

# Invalid values.

run "refuses_values_below_the_minimum" {
  command = plan
  variables {
    project_id            = "abcde"
    image                 = "segment"
    region                = "us-central1-a"
    name                  = "a"
    labels                = { Team = "vision" }
    keep_images           = 0
    generation            = 0
    concurrency           = 0
    timeout_seconds       = 9
    max_instances         = 0
    events_max_instances  = 0
    events_concurrency    = 0
    oldest_photo_minutes  = 4
    invokers              = ["allUsers"]
    ingress               = "none"
    cors_origins          = ["example.com"]
    model                 = " "
    render_factor         = "3"
    fit                   = "stretch"
    min_score             = -0.01
    max_detections        = 0
    input_bucket          = "ab"
    input_prefix          = "/photos"
    input_retention_days  = 0
    output_prefix         = "/results"
    output_formats        = []
    output_retention_days = 0
    max_delivery_attempts = 4
    dead_letter_days      = 0
    backfill_tasks        = 0
    backfill_hours        = 0
    backfill_dataset      = ["voc"]
    alert_emails          = ["me"]
    budget                = { billing_account = "mine", amount = 1 }
  }
  expect_failures = [var.project_id, var.image, var.region, var.name, var.labels, var.keep_images, var.generation, var.concurrency, var.timeout_seconds, var.max_instances, var.events_max_instances, var.events_concurrency, var.oldest_photo_minutes, var.invokers, var.ingress, var.cors_origins, var.model, var.render_factor, var.fit, var.min_score, var.max_detections, var.input_bucket, var.input_prefix, var.input_retention_days, var.output_prefix, var.output_formats, var.output_retention_days, var.max_delivery_attempts, var.dead_letter_days, var.backfill_tasks, var.backfill_hours, var.backfill_dataset, var.alert_emails, var.budget]
}

run "refuses_values_above_the_maximum" {
  command = plan
  variables {
    project_id            = "a234567890123456789012345678901"
    image                 = "us-central1-docker.pkg.dev/my-project/segment/segment:latest"
    region                = "us"
    name                  = "a23456789012345678901"
    labels                = { team = "Vision" }
    keep_images           = 1001
    generation            = 3
    concurrency           = 81
    timeout_seconds       = 601
    max_instances         = 1001
    events_max_instances  = 1001
    events_concurrency    = 81
    oldest_photo_minutes  = 1441
    invokers              = ["me@example.com"]
    ingress               = "ALL"
    cors_origins          = ["https://example.com/page"]
    render_factor         = "257"
    fit                   = ""
    min_score             = 1.01
    max_detections        = 1001
    input_bucket          = "gs://photos"
    input_prefix          = " photos"
    input_retention_days  = 1.5
    output_prefix         = "results "
    output_formats        = ["gif"]
    output_retention_days = 1.5
    max_delivery_attempts = 101
    dead_letter_days      = 32
    backfill_tasks        = 101
    backfill_hours        = 169
    backfill_dataset      = ["coco", "coco"]
    alert_emails          = ["me@example"]
    budget                = { billing_account = "012345-6789AB-CDEF01", amount = 0.5 }
  }
  expect_failures = [var.project_id, var.image, var.region, var.name, var.labels, var.keep_images, var.generation, var.concurrency, var.timeout_seconds, var.max_instances, var.events_max_instances, var.events_concurrency, var.oldest_photo_minutes, var.invokers, var.ingress, var.cors_origins, var.render_factor, var.fit, var.min_score, var.max_detections, var.input_bucket, var.input_prefix, var.input_retention_days, var.output_prefix, var.output_formats, var.output_retention_days, var.max_delivery_attempts, var.dead_letter_days, var.backfill_tasks, var.backfill_hours, var.backfill_dataset, var.alert_emails, var.budget]
}

run "refuses_fractions_and_incomplete_values" {
  command = plan
  variables {
    keep_images           = 1.5
    concurrency           = 1.5
    timeout_seconds       = 60.5
    max_instances         = 1.5
    events_max_instances  = 1.5
    events_concurrency    = 1.5
    oldest_photo_minutes  = 5.5
    render_factor         = "25.5"
    max_detections        = 1.5
    max_delivery_attempts = 5.5
    dead_letter_days      = 1.5
    backfill_tasks        = 1.5
    backfill_hours        = 1.5
    image                 = "us-central1-docker.pkg.dev/my-project/segment/segment"
    name                  = "segment-"
    project_id            = "my-project-"
  }
  expect_failures = [var.keep_images, var.concurrency, var.timeout_seconds, var.max_instances, var.events_max_instances, var.events_concurrency, var.oldest_photo_minutes, var.render_factor, var.max_detections, var.max_delivery_attempts, var.dead_letter_days, var.backfill_tasks, var.backfill_hours, var.image, var.name, var.project_id]
}

run "refuses_reserved_names_and_too_many_addresses" {
  command = plan
  variables {
    name         = "my-google"
    alert_emails = [for n in range(17) : "${n}@b.example"]
  }
  expect_failures = [var.name, var.alert_emails]
}

run "refuses_too_many_addresses_for_a_budget" {
  command = plan
  variables {
    alert_emails = [for n in range(6) : "${n}@b.example"]
    budget       = { billing_account = "012345-6789AB-CDEF01", amount = 1 }
  }
  expect_failures = [google_billing_budget.month]
}

run "refuses_less_than_128_MiB" {
  command = plan
  variables {
    generation = 1
    memory_mib = 127
  }
  expect_failures = [var.memory_mib]
}

run "refuses_less_than_512_MiB_on_the_second_generation" {
  command = plan
  variables {
    memory_mib = 511
  }
  expect_failures = [var.memory_mib]
}

run "refuses_a_fraction_of_a_MiB" {
  command = plan
  variables {
    memory_mib = 512.5
  }
  expect_failures = [var.memory_mib]
}

run "refuses_more_than_32_GiB" {
  command = plan
  variables {
    cpu        = 8
    memory_mib = 32769
  }
  expect_failures = [var.memory_mib]
}

run "refuses_513_MiB_with_0_49_cpu" {
  command = plan
  variables {
    generation  = 1
    concurrency = 1
    cpu         = 0.49
    memory_mib  = 513
  }
  expect_failures = [var.memory_mib]
}

run "refuses_1025_MiB_with_0_99_cpu" {
  command = plan
  variables {
    generation  = 1
    concurrency = 1
    cpu         = 0.99
    memory_mib  = 1025
  }
  expect_failures = [var.memory_mib]
}

run "refuses_4097_MiB_with_1_cpu" {
  command = plan
  variables {
    cpu        = 1
    memory_mib = 4097
  }
  expect_failures = [var.memory_mib]
}

run "refuses_8193_MiB_with_2_cpu" {
  command = plan
  variables {
    cpu        = 2
    memory_mib = 8193
  }
  expect_failures = [var.memory_mib]
}

run "refuses_16385_MiB_with_4_cpu" {
  command = plan
  variables {
    cpu        = 4
    memory_mib = 16385
  }
  expect_failures = [var.memory_mib]
}

run "refuses_24577_MiB_with_6_cpu" {
  command = plan
  variables {
    cpu        = 6
    memory_mib = 24577
  }
  expect_failures = [var.memory_mib]
}

run "refuses_2047_MiB_with_4_cpu" {
  command = plan
  variables {
    cpu        = 4
    memory_mib = 2047
  }
  expect_failures = [var.memory_mib]
}

run "refuses_4095_MiB_with_6_cpu" {
  command = plan
  variables {
    cpu        = 6
    memory_mib = 4095
  }
  expect_failures = [var.memory_mib]
}

run "refuses_4095_MiB_with_8_cpu" {
  command = plan
  variables {
    cpu        = 8
    memory_mib = 4095
  }
  expect_failures = [var.memory_mib]
}

run "refuses_0_07_cpu" {
  command = plan
  variables {
    generation  = 1
    concurrency = 1
    cpu         = 0.07
  }
  expect_failures = [var.cpu]
}

run "refuses_1_5_cpu" {
  command = plan
  variables {
    cpu = 1.5
  }
  expect_failures = [var.cpu]
}

run "refuses_3_cpu" {
  command = plan
  variables {
    cpu = 3
  }
  expect_failures = [var.cpu]
}

run "refuses_less_than_1_cpu_on_the_second_generation" {
  command = plan
  variables {
    cpu         = 0.5
    concurrency = 1
  }
  expect_failures = [var.cpu]
}

run "refuses_less_than_1_cpu_with_concurrency_2" {
  command = plan
  variables {
    cpu         = 0.5
    concurrency = 2
    generation  = 1
  }
  expect_failures = [var.cpu]
}

run "refuses_less_than_1_cpu_with_events_concurrency_2" {
  command = plan
  variables {
    generation         = 1
    concurrency        = 1
    cpu                = 0.5
    events_concurrency = 2
  }
  expect_failures = [var.cpu]
}

# Invalid values of several variables, none of which decides whether the other's value is valid: each run takes a tenth
# of a second.

run "refuses_negative_instances_and_a_variable_of_another_program" {
  command = plan
  variables {
    min_instances         = -1
    environment           = { PORT = "80" }
    input_project         = "photos-project" # with a bucket that the module creates
    backfill_dataset_only = true             # without a format
  }
  expect_failures = [var.min_instances, var.environment, var.input_project, var.backfill_dataset_only]
}

run "refuses_a_part_of_an_instance_and_a_setting_that_has_a_terraform_variable" {
  command = plan
  variables {
    min_instances = 0.5
    environment   = { SEGMENT_FIT = "square" }
  }
  expect_failures = [var.min_instances, var.environment]
}

run "refuses_min_instances_above_max_instances_and_a_setting_that_is_derived_from_a_variable" {
  command = plan
  variables {
    min_instances = 3
    max_instances = 2
    environment   = { SEGMENT_MEMORY = "1Gi" }
  }
  expect_failures = [var.min_instances, var.environment]
}

run "refuses_negative_wait_seconds_and_an_invalid_name_of_the_output_bucket" {
  command = plan
  variables {
    wait_seconds         = -1
    output_bucket        = "gs://results"
    ack_deadline_seconds = 120.5
  }
  expect_failures = [var.wait_seconds, var.output_bucket, var.ack_deadline_seconds]
}

run "refuses_wait_seconds_equal_to_timeout_seconds_and_the_same_bucket_for_photos_and_results" {
  command = plan
  variables {
    timeout_seconds      = 60
    wait_seconds         = 56
    ack_deadline_seconds = 59
    input_bucket         = "photos"
    output_bucket        = "photos"
  }
  expect_failures = [var.wait_seconds, var.ack_deadline_seconds, var.output_bucket]
}

run "refuses_an_ack_deadline_of_601_s_and_photos_in_the_default_output_bucket" {
  command = plan
  variables {
    ack_deadline_seconds = 601
    input_bucket         = "my-project-segment-output"
  }
  expect_failures = [var.ack_deadline_seconds, var.output_bucket]
}

run "refuses_a_mounted_model_on_the_first_generation_and_results_in_the_default_input_bucket" {
  command = plan
  variables {
    generation           = 1
    model_bucket         = "models"
    timeout_seconds      = 10
    wait_seconds         = 5
    ack_deadline_seconds = 9
    output_bucket        = "my-project-segment-input"
  }
  expect_failures = [var.model_bucket, var.ack_deadline_seconds, var.output_bucket]
}

run "refuses_existing_buckets_without_names" {
  command = plan
  variables {
    create_input_bucket  = false
    create_output_bucket = false
  }
  expect_failures = [var.create_input_bucket, var.create_output_bucket]
}

run "refuses_a_version_of_a_key" {
  command = plan
  variables {
    kms_key = "projects/keys/locations/us-central1/keyRings/ring/cryptoKeys/key/cryptoKeyVersions/1"
  }
  expect_failures = [var.kms_key]
}

run "refuses_a_key_of_another_region" {
  command = plan
  variables {
    kms_key = "projects/keys/locations/us/keyRings/ring/cryptoKeys/key"
  }
  expect_failures = [var.kms_key]
}
