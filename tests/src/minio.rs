//! A real MinIO on the loopback interface, built and started by `tests/minio.sh`.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::broker::http_get;
use crate::installed::{root, target};

/// Time that the start may take on a busy machine.
const START_PATIENCE: Duration = Duration::from_secs(60);

/// A running MinIO with an empty bucket. Dropping it kills it and removes its data.
#[derive(Debug)]
pub struct Minio {
    child: Child,
    port: u16,
    directory: TempDir,
}

impl Minio {
    /// What is missing for [`Minio::start`], if anything.
    pub fn missing() -> Option<String> {
        (!target().join("tools/minio").exists())
            .then(|| "MinIO is not built: run tests/minio.sh install".to_owned())
    }

    /// Starts it on any port, with the bucket `alluvium`, and waits until it is ready.
    pub fn start() -> Minio {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let port = listener.local_addr().expect("the port").port();
        drop(listener);
        Minio::start_at(port, "alluvium")
    }

    /// Starts it on this port, with this bucket, and waits until it is ready.
    pub fn start_at(port: u16, bucket: &str) -> Minio {
        let directory = TempDir::with_prefix("alluvium-minio-").expect("a temporary directory");
        let log = File::create(directory.path().join("minio.log")).expect("the log of MinIO");
        let child = Command::new(root().join("tests/minio.sh"))
            .args(["serve".as_ref(), directory.path().join("data").as_os_str()])
            .args([&port.to_string(), bucket])
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("the log of MinIO"))
            .stderr(log)
            .spawn()
            .expect("tests/minio.sh runs");
        let mut minio = Minio {
            child,
            port,
            directory,
        };
        let deadline = Instant::now() + START_PATIENCE;
        while !minio.is_ready() {
            let ended = minio.child.try_wait().expect("the state of MinIO");
            assert!(
                ended.is_none() && Instant::now() < deadline,
                "MinIO does not start: {}",
                minio.log()
            );
            std::thread::sleep(Duration::from_millis(100));
        }
        minio
    }

    fn is_ready(&self) -> bool {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.port));
        http_get(address, "/minio/health/ready").is_ok_and(|(status, _)| status == 200)
    }

    /// Everything that it printed.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("minio.log")).unwrap_or_default()
    }

    /// The AWS variables that lead to it.
    pub fn env(&self) -> Vec<(String, String)> {
        let endpoint = format!("http://127.0.0.1:{}", self.port);
        [
            ("AWS_ACCESS_KEY_ID", "alluvium-test"),
            ("AWS_SECRET_ACCESS_KEY", "alluvium-test"),
            ("AWS_REGION", "us-east-1"),
            ("AWS_ENDPOINT_URL", &endpoint),
            ("AWS_ALLOW_HTTP", "true"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec()
    }
}

impl Drop for Minio {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
