data "google_client_config" "current" {}

data "google_project" "current" {
  project_id = var.project_id
}

locals {
  # Who a Kubernetes service account is to Google Cloud, without a Google service account between.
  workload_pool = "${var.project_id}.svc.id.goog"
  principal     = "principal://iam.googleapis.com/projects/${data.google_project.current.number}/locations/global/workloadIdentityPools/${local.workload_pool}/subject"
}

resource "google_container_cluster" "embedkeep" {
  name                = var.name
  location            = var.location
  network             = var.network.network
  subnetwork          = var.network.subnetwork
  networking_mode     = "VPC_NATIVE"
  deletion_protection = var.deletion_protection
  resource_labels     = var.labels

  # Its own pools stand below; the one that every cluster begins with goes.
  remove_default_node_pool = true
  initial_node_count       = 1

  # Enforces NetworkPolicies, which say who may talk to nodes, embedders and Valkeys.
  datapath_provider = "ADVANCED_DATAPATH"

  ip_allocation_policy {}

  release_channel {
    channel = "REGULAR"
  }

  workload_identity_config {
    workload_pool = local.workload_pool
  }

  addons_config {
    gcs_fuse_csi_driver_config {
      enabled = true
    }
  }

  dynamic "master_authorized_networks_config" {
    for_each = length(var.authorized_networks) > 0 ? [var.authorized_networks] : []

    content {
      dynamic "cidr_blocks" {
        for_each = master_authorized_networks_config.value

        content {
          display_name = cidr_blocks.key
          cidr_block   = cidr_blocks.value
        }
      }
    }
  }
}

# Machines may write logs and metrics and pull images, and nothing else.
resource "google_service_account" "machines" {
  account_id   = "${var.name}-machines"
  display_name = "Machines of the cluster ${var.name}"
}

resource "google_project_iam_member" "machines" {
  for_each = toset(["roles/container.defaultNodeServiceAccount", "roles/artifactregistry.reader"])

  project = var.project_id
  role    = each.key
  member  = google_service_account.machines.member
}

resource "google_container_node_pool" "cpu" {
  name               = "cpu"
  cluster            = google_container_cluster.embedkeep.id
  initial_node_count = 1

  autoscaling {
    total_min_node_count = var.cpu_pool.min_nodes
    total_max_node_count = var.cpu_pool.max_nodes
    location_policy      = "BALANCED"
  }

  management {
    auto_repair  = true
    auto_upgrade = true
  }

  node_config {
    machine_type    = var.cpu_pool.machine_type
    disk_size_gb    = var.cpu_pool.disk_gb
    disk_type       = "pd-balanced"
    service_account = google_service_account.machines.email
    oauth_scopes    = ["https://www.googleapis.com/auth/cloud-platform"]
    resource_labels = var.labels

    # Pods get their own identity; that of the machine is out of their reach.
    workload_metadata_config {
      mode = "GKE_METADATA"
    }

    shielded_instance_config {
      enable_secure_boot = true
    }
  }

  lifecycle {
    # The autoscaler's; another number here would make the pool anew.
    ignore_changes = [initial_node_count]
  }

  depends_on = [google_project_iam_member.machines]
}

resource "google_container_node_pool" "gpu" {
  count = var.gpu_pool == null ? 0 : 1

  name               = "gpu"
  cluster            = google_container_cluster.embedkeep.id
  initial_node_count = 0
  node_locations     = length(var.gpu_pool.zones) > 0 ? var.gpu_pool.zones : null

  autoscaling {
    total_min_node_count = 0
    total_max_node_count = var.gpu_pool.max_nodes
    # Wherever there is one to be had: GPUs run out, spot ones most of all.
    location_policy = "ANY"
  }

  management {
    auto_repair  = true
    auto_upgrade = true
  }

  node_config {
    machine_type    = var.gpu_pool.machine_type
    disk_size_gb    = var.gpu_pool.disk_gb
    disk_type       = "pd-balanced"
    spot            = var.gpu_pool.spot
    service_account = google_service_account.machines.email
    oauth_scopes    = ["https://www.googleapis.com/auth/cloud-platform"]
    resource_labels = var.labels

    guest_accelerator {
      type  = var.gpu_pool.accelerator
      count = var.gpu_pool.gpus_per_machine

      gpu_driver_installation_config {
        gpu_driver_version = "DEFAULT"
      }
    }

    # GKE lets pods that ask for nvidia.com/gpu tolerate it; nothing else shall fill these machines.
    taint {
      key    = "nvidia.com/gpu"
      value  = "present"
      effect = "NO_SCHEDULE"
    }

    workload_metadata_config {
      mode = "GKE_METADATA"
    }
  }

  lifecycle {
    ignore_changes = [initial_node_count]
  }

  depends_on = [google_project_iam_member.machines]
}

resource "google_storage_bucket_iam_member" "models" {
  for_each = { for reader in var.model_readers : "${reader.bucket}/${reader.namespace}/${reader.cache}" => reader }

  bucket = each.value.bucket
  role   = "roles/storage.objectViewer"
  member = "${local.principal}/ns/${each.value.namespace}/sa/${each.value.cache}"

  # The workload identity pool is there with the first cluster that uses it.
  depends_on = [google_container_cluster.embedkeep]
}

resource "helm_release" "operator" {
  name             = "embedkeep"
  chart            = coalesce(var.operator.chart, "${path.module}/../charts/embedkeep")
  version          = var.operator.chart_version
  namespace        = var.operator.namespace
  create_namespace = true
  atomic           = true
  timeout          = 600

  values = [templatefile("${path.module}/values.yaml.tftpl", {
    replicas         = var.operator.replicas
    scope            = var.operator.scope
    image_repository = var.operator.image_repository
    prometheus       = var.prometheus
  })]

  # It runs on these, and goes before them.
  depends_on = [google_container_node_pool.cpu]
}
