locals {
  irsa_annotations = var.irsa == null ? {} : {
    "eks.amazonaws.com/role-arn" = aws_iam_role.this[0].arn
  }
}

resource "helm_release" "this" {
  count = var.helm == null ? 0 : 1

  name             = var.name
  namespace        = var.namespace
  create_namespace = true
  chart            = coalesce(var.helm.chart, "${path.module}/../helm/alluvium")
  # A broker is ready when it has proven that the bucket keeps its promises.
  wait    = true
  timeout = 600

  values = concat([yamlencode({
    # The bootstrap service has this name: see the output bootstrap.
    fullnameOverride = var.name
    replicas         = var.helm.replicas
    image = {
      repository = var.helm.image_repository
      tag        = var.helm.image_tag
    }
    bucket = {
      name   = var.bucket
      prefix = var.prefix
      region = local.region
    }
    serviceAccount = {
      name        = var.service_account
      annotations = local.irsa_annotations
    }
  })], var.helm.values)

  lifecycle {
    precondition {
      condition     = local.has_role
      error_message = "helm is set, but neither irsa nor pod_identity: the brokers would have no credentials."
    }
  }

  # The first broker needs all of them at once, and what is taken away first would stop the last one.
  depends_on = [
    aws_eks_pod_identity_association.this,
    aws_iam_role_policy_attachment.key,
    aws_iam_role_policy_attachment.store,
    aws_s3_bucket.this,
    aws_s3_bucket_policy.this,
    aws_s3_bucket_server_side_encryption_configuration.this,
    aws_vpc_endpoint.s3,
  ]
}
