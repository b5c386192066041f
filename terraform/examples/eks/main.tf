# Brokers on an EKS cluster that is there already.
#
#   tofu init
#   tofu apply -var cluster=my-cluster -var bucket=my-bucket -var image=registry.example.com/alluvium

terraform {
  required_version = ">= 1.6"

  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = ">= 6.0"
    }
    helm = {
      source  = "hashicorp/helm"
      version = ">= 3.0"
    }
  }
}

provider "aws" {
  region = var.region
}

data "aws_eks_cluster" "this" {
  name = var.cluster
}

data "aws_iam_openid_connect_provider" "this" {
  url = data.aws_eks_cluster.this.identity[0].oidc[0].issuer
}

# The route tables of the subnets in which the cluster's nodes are.
data "aws_route_tables" "this" {
  vpc_id = data.aws_eks_cluster.this.vpc_config[0].vpc_id
}

provider "helm" {
  kubernetes = {
    host                   = data.aws_eks_cluster.this.endpoint
    cluster_ca_certificate = base64decode(data.aws_eks_cluster.this.certificate_authority[0].data)

    exec = {
      api_version = "client.authentication.k8s.io/v1"
      command     = "aws"
      args        = ["eks", "get-token", "--region", var.region, "--cluster-name", var.cluster]
    }
  }
}

module "alluvium" {
  source = "../.."

  bucket = var.bucket

  # With the EKS Pod Identity Agent in the cluster instead: pod_identity = { cluster_name = var.cluster }
  irsa = {
    oidc_provider_arn = data.aws_iam_openid_connect_provider.this.arn
  }

  gateway_endpoint = {
    vpc_id          = data.aws_eks_cluster.this.vpc_config[0].vpc_id
    route_table_ids = data.aws_route_tables.this.ids
  }

  helm = {
    image_repository = var.image
    image_tag        = var.image_tag
    replicas         = 3

    values = [yamlencode({
      config = {
        "log.retention.ms" = 604800000
      }
    })]
  }
}
