use crate::support::*;

through_both_doors! {
    async fn is_one_page_that_loads_nothing_else(api: Api) {
        let reply = api.get("/docs").send().await.expect_status(200);
        assert_eq!(reply.header("content-type"), Some("text/html; charset=utf-8"));
        let policy = reply.header("content-security-policy").unwrap();
        assert!(policy.starts_with("default-src 'none'; script-src 'sha256-"), "{policy}");
        assert!(!policy.contains("unsafe") && !policy.contains("http"), "{policy}");
        for tag in ["<script src", "<link rel=\"stylesheet\"", "<img src=\"http", "@import url(http"] {
            assert!(!reply.text.contains(tag), "{tag}");
        }
        assert!(reply.text.contains("SwaggerUIBundle({ url: \"openapi.json\""));
    }

    async fn is_compressed_for_who_can_read_that(api: Api) {
        let reply = api.get("/docs").header("accept-encoding", "br, gzip;q=0.8").header("accept", "text/html").open().await;
        assert_eq!(reply.headers()["content-encoding"], "gzip");
        let bytes = reply.bytes().await.unwrap();
        assert_eq!(bytes[..2], [0x1f, 0x8b]);
        assert!(bytes.len() < 600_000, "{} bytes", bytes.len());
    }
}
