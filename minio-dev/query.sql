-- What the topic "orders" says, from its Parquet files in the bucket. More of it: docs/analytics.md
INSTALL httpfs;
LOAD httpfs;
CREATE SECRET (
    TYPE s3,
    KEY_ID getenv('AWS_ACCESS_KEY_ID'),
    SECRET getenv('AWS_SECRET_ACCESS_KEY'),
    ENDPOINT '127.0.0.1:9000',
    URL_STYLE 'path',
    USE_SSL false
);
SELECT decode(key) AS customer, count(*) AS orders, sum((decode(value)::JSON ->> 'price')::DOUBLE) AS revenue
FROM 's3://alluvium/dev/archive/topic=orders-*/*.parquet'
GROUP BY customer
ORDER BY customer;
