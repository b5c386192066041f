data "aws_partition" "current" {}

data "aws_region" "current" {}

locals {
  bucket_arn  = "arn:${data.aws_partition.current.partition}:s3:::${var.bucket}"
  objects_arn = var.prefix == "" ? "${local.bucket_arn}/*" : "${local.bucket_arn}/${var.prefix}/*"
  store_url   = var.prefix == "" ? "s3://${var.bucket}" : "s3://${var.bucket}/${var.prefix}"
  region      = data.aws_region.current.region
}

# No versioning: a broker rewrites its head every 10 seconds (alone every 30), and each version would be kept and paid for.
resource "aws_s3_bucket" "this" {
  count = var.create_bucket ? 1 : 0

  bucket        = var.bucket
  force_destroy = var.force_destroy
  tags          = var.tags
}

resource "aws_s3_bucket_public_access_block" "this" {
  count = var.create_bucket ? 1 : 0

  bucket                  = aws_s3_bucket.this[0].id
  block_public_acls       = true
  block_public_policy     = true
  ignore_public_acls      = true
  restrict_public_buckets = true
}

resource "aws_s3_bucket_ownership_controls" "this" {
  count = var.create_bucket ? 1 : 0

  bucket = aws_s3_bucket.this[0].id

  rule {
    object_ownership = "BucketOwnerEnforced"
  }
}

resource "aws_s3_bucket_server_side_encryption_configuration" "this" {
  count = var.create_bucket ? 1 : 0

  bucket = aws_s3_bucket.this[0].id

  rule {
    # One request to KMS serves many objects.
    bucket_key_enabled = var.kms != null

    apply_server_side_encryption_by_default {
      sse_algorithm     = var.kms == null ? "AES256" : "aws:kms"
      kms_master_key_id = try(var.kms.key_arn, null)
    }
  }
}

# Nothing expires: what the cluster needs no longer it deletes itself, and an object is never too old to be needed.
resource "aws_s3_bucket_lifecycle_configuration" "this" {
  count = var.create_bucket ? 1 : 0

  bucket = aws_s3_bucket.this[0].id

  rule {
    id     = "abort-unfinished-uploads"
    status = "Enabled"

    filter {}

    abort_incomplete_multipart_upload {
      days_after_initiation = var.abort_uploads_after_days
    }
  }
}

data "aws_iam_policy_document" "bucket" {
  statement {
    sid       = "OnlyEncryptedConnections"
    effect    = "Deny"
    actions   = ["s3:*"]
    resources = [local.bucket_arn, "${local.bucket_arn}/*"]

    principals {
      type        = "*"
      identifiers = ["*"]
    }

    condition {
      test     = "Bool"
      variable = "aws:SecureTransport"
      values   = ["false"]
    }
  }
}

resource "aws_s3_bucket_policy" "this" {
  count = var.create_bucket ? 1 : 0

  bucket = aws_s3_bucket.this[0].id
  policy = data.aws_iam_policy_document.bucket.json

  # S3 refuses to change both at once.
  depends_on = [aws_s3_bucket_public_access_block.this]
}
