locals {
  has_role = var.irsa != null || var.pod_identity != null
  # The provider's address without https://, as it stands in its ARN.
  oidc_issuer = var.irsa == null ? "" : regex("oidc-provider/(.+)$", var.irsa.oidc_provider_arn)[0]
}

resource "aws_iam_policy" "store" {
  name        = "${var.name}-store"
  description = "What a broker of Alluvium does with its bucket, and nothing else."
  tags        = var.tags

  policy = templatefile("${path.module}/policy.json.tftpl", {
    bucket_arn  = local.bucket_arn
    objects_arn = local.objects_arn
  })
}

data "aws_iam_policy_document" "key" {
  count = var.kms == null ? 0 : 1

  statement {
    sid = "Key"
    # Reading an upload in parts back to finish it needs Decrypt as well.
    actions   = ["kms:Decrypt", "kms:GenerateDataKey"]
    resources = [var.kms.key_arn]
  }
}

resource "aws_iam_policy" "key" {
  count = var.kms == null ? 0 : 1

  name        = "${var.name}-key"
  description = "Use of the key that encrypts the bucket."
  policy      = data.aws_iam_policy_document.key[0].json
  tags        = var.tags
}

data "aws_iam_policy_document" "trust" {
  count = local.has_role ? 1 : 0

  # IAM roles for service accounts.
  dynamic "statement" {
    for_each = var.irsa == null ? [] : [var.irsa.oidc_provider_arn]

    content {
      sid     = "ServiceAccount"
      actions = ["sts:AssumeRoleWithWebIdentity"]

      principals {
        type        = "Federated"
        identifiers = [statement.value]
      }

      condition {
        test     = "StringEquals"
        variable = "${local.oidc_issuer}:sub"
        values   = ["system:serviceaccount:${var.namespace}:${var.service_account}"]
      }

      condition {
        test     = "StringEquals"
        variable = "${local.oidc_issuer}:aud"
        values   = ["sts.amazonaws.com"]
      }
    }
  }

  dynamic "statement" {
    for_each = var.pod_identity == null ? [] : [var.pod_identity.cluster_name]

    content {
      sid     = "PodIdentity"
      actions = ["sts:AssumeRole", "sts:TagSession"]

      principals {
        type        = "Service"
        identifiers = ["pods.eks.amazonaws.com"]
      }
    }
  }
}

resource "aws_iam_role" "this" {
  count = local.has_role ? 1 : 0

  name               = var.name
  description        = "Brokers of Alluvium on ${local.store_url}."
  assume_role_policy = data.aws_iam_policy_document.trust[0].json
  tags               = var.tags
}

resource "aws_iam_role_policy_attachment" "store" {
  count = local.has_role ? 1 : 0

  role       = aws_iam_role.this[0].name
  policy_arn = aws_iam_policy.store.arn
}

resource "aws_iam_role_policy_attachment" "key" {
  count = local.has_role && var.kms != null ? 1 : 0

  role       = aws_iam_role.this[0].name
  policy_arn = aws_iam_policy.key[0].arn
}

resource "aws_eks_pod_identity_association" "this" {
  count = var.pod_identity == null ? 0 : 1

  cluster_name    = var.pod_identity.cluster_name
  namespace       = var.namespace
  service_account = var.service_account
  role_arn        = aws_iam_role.this[0].arn
  tags            = var.tags
}
