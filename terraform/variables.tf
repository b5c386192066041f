variable "name" {
  description = "Name of the role, the policies and the Helm release."
  type        = string
  default     = "alluvium"

  validation {
    condition     = can(regex("^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$", var.name))
    error_message = "name must be 1 to 40 lower-case letters, digits and hyphens, begin with a letter and not end with a hyphen: it becomes the name of a Kubernetes service."
  }
}

variable "bucket" {
  description = "Name of the bucket."
  type        = string

  validation {
    condition     = can(regex("^[a-z0-9][a-z0-9-]{1,61}[a-z0-9]$", var.bucket))
    error_message = "bucket must be 3 to 63 lower-case letters, digits and hyphens (no dots: their certificates do not fit), and begin and end with a letter or digit."
  }
}

variable "create_bucket" {
  description = "Whether to create the bucket. If not, it must exist, in the provider's region."
  type        = bool
  default     = true
}

variable "force_destroy" {
  description = "Whether destroying the bucket also deletes what is in it: all records of the cluster."
  type        = bool
  default     = false
}

variable "prefix" {
  description = "The cluster's data is below this prefix. Empty: the whole bucket."
  type        = string
  default     = "alluvium"

  validation {
    condition     = can(regex("^([A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*)?$", var.prefix))
    error_message = "prefix must be names of letters, digits, - and _, joined by single slashes, without one at the beginning or end."
  }
}

variable "kms" {
  description = "KMS key that encrypts the bucket; brokers are allowed to use it. Null: S3's own keys (SSE-S3)."
  type        = object({ key_arn = string })
  default     = null

  validation {
    condition     = var.kms == null || can(regex("^arn:[a-z-]+:kms:[a-z0-9-]+:[0-9]{12}:key/[A-Za-z0-9-]+$", var.kms.key_arn))
    error_message = "kms.key_arn must be the ARN of a key (arn:aws:kms:REGION:ACCOUNT:key/ID), not of an alias."
  }
}

variable "abort_uploads_after_days" {
  description = "After so many days S3 removes the parts of uploads that nobody finished."
  type        = number
  default     = 2

  validation {
    condition     = var.abort_uploads_after_days >= 1 && var.abort_uploads_after_days == floor(var.abort_uploads_after_days)
    error_message = "abort_uploads_after_days must be a whole number of at least 1."
  }
}

variable "namespace" {
  description = "Kubernetes namespace of the brokers."
  type        = string
  default     = "alluvium"

  validation {
    condition     = can(regex("^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$", var.namespace))
    error_message = "namespace must be a Kubernetes name; the role is given to exactly one service account, so there are no wildcards."
  }
}

variable "service_account" {
  description = "Kubernetes service account of the brokers."
  type        = string
  default     = "alluvium"

  validation {
    condition     = can(regex("^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$", var.service_account))
    error_message = "service_account must be a Kubernetes name; the role is given to exactly one service account, so there are no wildcards."
  }
}

variable "irsa" {
  description = "EKS cluster whose OIDC provider vouches for the service account (IAM roles for service accounts). Null: no IRSA."
  type        = object({ oidc_provider_arn = string })
  default     = null

  validation {
    condition     = var.irsa == null || can(regex("^arn:[a-z-]+:iam::[0-9]{12}:oidc-provider/[^*?]+$", var.irsa.oidc_provider_arn))
    error_message = "irsa.oidc_provider_arn must look like arn:aws:iam::ACCOUNT:oidc-provider/oidc.eks.REGION.amazonaws.com/id/ID."
  }
}

variable "pod_identity" {
  description = "EKS cluster whose Pod Identity Agent gives the role to the service account. Null: no Pod Identity."
  type        = object({ cluster_name = string })
  default     = null

  validation {
    condition     = var.pod_identity == null || can(regex("^[A-Za-z0-9][A-Za-z0-9_-]{0,99}$", var.pod_identity.cluster_name))
    error_message = "pod_identity.cluster_name must be the name of an EKS cluster."
  }
}

variable "gateway_endpoint" {
  description = "VPC that gets a gateway endpoint for S3, and the route tables of the subnets in which brokers run: traffic to the bucket costs nothing and leaves no private network. Null: none is made."
  type = object({
    vpc_id          = string
    route_table_ids = list(string)
  })
  default = null

  validation {
    condition     = var.gateway_endpoint == null || can(regex("^vpc-[0-9a-f]+$", var.gateway_endpoint.vpc_id))
    error_message = "gateway_endpoint.vpc_id must look like vpc-0123456789abcdef0."
  }

  validation {
    condition     = var.gateway_endpoint == null || try(length(var.gateway_endpoint.route_table_ids) > 0, false)
    error_message = "gateway_endpoint.route_table_ids must name a route table: an endpoint without one is used by nobody."
  }
}

variable "helm" {
  description = "The Helm release: chart (a path, an OCI reference, or null for helm/alluvium of this repository), the image, the number of brokers and further values as YAML, of which later ones win. Null: none is made."
  type = object({
    chart            = optional(string)
    image_repository = string
    image_tag        = optional(string, "")
    replicas         = optional(number, 3)
    values           = optional(list(string), [])
  })
  default = null

  validation {
    condition     = var.helm == null || try(var.helm.replicas >= 1 && var.helm.replicas == floor(var.helm.replicas), false)
    error_message = "helm.replicas must be a whole number of at least 1."
  }

  validation {
    condition     = var.helm == null || try(alltrue([for values in var.helm.values : can(yamldecode(values))]), false)
    error_message = "helm.values must be texts in YAML."
  }
}

variable "tags" {
  description = "Tags of all AWS resources."
  type        = map(string)
  default     = {}
}
