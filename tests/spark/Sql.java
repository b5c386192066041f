import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.stream.Collectors;

import org.apache.spark.sql.Row;
import org.apache.spark.sql.SparkSession;
import org.apache.spark.sql.classic.Dataset;
import org.apache.spark.sql.execution.FileSourceScanExec;
import org.apache.spark.sql.execution.SparkPlan;
import scala.jdk.javaapi.CollectionConverters;

/**
 * Gives Spark the SQL statements of its standard input, each ended by a semicolon at the end of a line, and prints what
 * they answer; see run.sh.
 */
public final class Sql {
    public static void main(String[] args) throws Exception {
        boolean json = List.of(args).contains("--json");
        String input = new String(System.in.readAllBytes(), StandardCharsets.UTF_8);
        // Spark makes its directory of tables where it runs, even if nobody makes one.
        Path tables = Files.createTempDirectory("alluvium-spark-");
        tables.toFile().deleteOnExit();
        // One thread and one partition: what is small is quick without the rest. Without adaptive execution a plan is what is run.
        SparkSession spark = SparkSession.builder().master("local[1]").appName("alluvium")
                .config("spark.ui.enabled", false)
                .config("spark.log.level", "ERROR")
                .config("spark.driver.host", "127.0.0.1")
                .config("spark.sql.shuffle.partitions", 1)
                .config("spark.sql.adaptive.enabled", false)
                .config("spark.sql.session.timeZone", "UTC")
                .config("spark.sql.warehouse.dir", tables.toUri().toString())
                .getOrCreate();
        for (String statement : statements(input)) {
            Dataset<Row> answer = (Dataset<Row>) spark.sql(statement);
            boolean setting = statement.regionMatches(true, 0, "SET ", 0, 4);
            if (setting || answer.columns().length == 0) {
                continue;
            }
            // The table is what `show()` prints, without the empty line behind it.
            System.out.println(json ? asJson(answer) : answer.showString(20, 20, false).strip());
        }
        spark.stop();
    }

    static List<String> statements(String input) {
        List<String> found = new ArrayList<>();
        for (String part : input.split(";[ \\t]*(\\n|$)")) {
            if (!part.isBlank()) {
                found.add(part.strip());
            }
        }
        return found;
    }

    /** The rows, and what it took: how many rows Spark had in its hands, and whether as columns or one by one. */
    static String asJson(Dataset<Row> answer) {
        String rows = answer.collectAsList().stream().map(Row::json).collect(Collectors.joining(", "));
        long scanned = 0;
        boolean columnar = false;
        for (SparkPlan leaf : CollectionConverters.asJava(answer.queryExecution().executedPlan().collectLeaves())) {
            if (leaf instanceof FileSourceScanExec scan) {
                scanned += scan.metrics().apply("numOutputRows").value();
                columnar |= scan.supportsColumnar();
            }
        }
        return "{\"rows\": [" + rows + "], \"scanned\": " + scanned + ", \"columnar\": " + columnar + "}";
    }
}
