# A gateway endpoint is free; without one, traffic to the bucket passes a NAT gateway and is paid for by the gigabyte.
resource "aws_vpc_endpoint" "s3" {
  count = var.gateway_endpoint == null ? 0 : 1

  vpc_id            = var.gateway_endpoint.vpc_id
  vpc_endpoint_type = "Gateway"
  service_name      = "com.amazonaws.${local.region}.s3"
  route_table_ids   = var.gateway_endpoint.route_table_ids
  tags              = merge({ Name = "${var.name}-s3" }, var.tags)
}
