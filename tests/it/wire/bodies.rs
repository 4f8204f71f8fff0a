//! Bodies that are not JSON, and JSON that is no object, wherever an endpoint reads one; bodies
//! that are announced and too large.

use std::time::Duration;

use homeserver_tests::{
    Server, coverage,
    table::{self, Row},
};
use reqwest::Method;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// Far less than a server would wait for a body.
const AT_ONCE: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread")]
async fn rubbish_is_refused_everywhere() {
    let server = Server::start().await;
    // Whose name the example paths have.
    let somebody = server.client().register("user").await;
    let mut faults = Vec::new();
    for (code, bodies) in [
        ("M_NOT_JSON", ["{", "nonsense"]),
        ("M_BAD_JSON", ["[]", "\"text\""]),
    ] {
        // What a GET is judged for is in its query.
        let rows = coverage::rows_with(400, code).into_iter();
        for row in rows.filter(|row| row.method != Method::GET) {
            let path = row.example();
            for body in bodies {
                let sent = somebody.send(
                    row.method.clone(),
                    &path,
                    Some("application/json"),
                    body.as_bytes().to_vec(),
                );
                let answer = sent.await.unwrap();
                if (answer.status, answer.body["errcode"].as_str()) != (400, Some(code)) {
                    faults.push(format!(
                        "{} {} with {body}: {} {}",
                        row.method, row.path, answer.status, answer.body
                    ));
                }
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// Sends the head of a request that announces 100 MiB, and gives the status of the answer.
#[expect(
    clippy::disallowed_methods,
    reason = "no client announces what it does not send"
)]
async fn announce(server: &Server, token: &str, row: &Row) -> String {
    let address = server.base().strip_prefix("http://").unwrap();
    let mut stream = TcpStream::connect(address).await.unwrap();
    let head = format!(
        "{} {} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nAuthorization: Bearer {token}\r\n\
         Content-Type: application/json\r\nContent-Length: 104857600\r\n\r\n",
        row.method,
        row.example(),
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut start = [0; 12];
    let read = tokio::time::timeout(AT_ONCE, stream.read_exact(&mut start)).await;
    match read {
        Ok(Ok(_)) => String::from_utf8_lossy(&start[9..]).into_owned(),
        Ok(Err(error)) => error.to_string(),
        Err(_) => "no answer".to_owned(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_announced_as_too_large_is_refused_at_once_everywhere() {
    let server = Server::start().await;
    let user = server.client().register("user").await;
    let token = user.token.unwrap();
    let mut faults = Vec::new();
    for row in table::rows().iter().filter(|row| row.built) {
        let status = announce(&server, &token, row).await;
        let good = if row.method == Method::GET {
            // The body of a GET means nothing, so it is neither waited for nor judged.
            let number = status.parse::<u16>();
            number.is_ok_and(|number| (200..500).contains(&number) && ![408, 413].contains(&number))
        } else {
            // What is said of the path may come first.
            status == "413" || status == "404"
        };
        if !good {
            faults.push(format!("{} {}: {status}", row.method, row.path));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}
