//! Turns `openapi.yaml` into the JSON that is served, and puts the page that renders it together: Swagger UI in
//! one document, so that it needs no second request, and a policy that allows these very scripts and no others.

use std::error::Error;
use std::io::{Cursor, Read, Write};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};

const DESCRIPTION: &str = "../../openapi.yaml";
const PAGE: &str = "src/docs.html";
const START: &str = "src/docs.js";
const ANALYTICS: &str = "src/analytics";

#[expect(clippy::disallowed_methods, reason = "cargo speaks to build scripts by environment")]
fn main() -> Result<(), Box<dyn Error>> {
    for input in [DESCRIPTION, PAGE, START, ANALYTICS] {
        println!("cargo::rerun-if-changed={input}");
    }
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    openapi_json(&out)?;
    docs_page(&out)?;
    analytics_page(&out)
}

fn openapi_json(out: &Path) -> Result<(), Box<dyn Error>> {
    let description: serde_json::Value = serde_saphyr::from_str(&std::fs::read_to_string(DESCRIPTION)?)?;
    std::fs::write(out.join("openapi.json"), description.to_string())?;
    Ok(())
}

fn docs_page(out: &Path) -> Result<(), Box<dyn Error>> {
    let mut archive = zip::ZipArchive::new(Cursor::new(utoipa_swagger_ui_vendored::SWAGGER_UI_VENDORED))?;
    let bundle = inline(&asset(&mut archive, "/dist/swagger-ui-bundle.js")?);
    let style = asset(&mut archive, "/dist/swagger-ui.css")?;
    let start = std::fs::read_to_string(START)?;

    let page = std::fs::read_to_string(PAGE)?
        .replace("{{style}}", &style)
        .replace("{{bundle}}", &bundle)
        .replace("{{start}}", &start);

    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    gzip.write_all(page.as_bytes())?;
    std::fs::write(out.join("docs.html.gz"), gzip.finish()?)?;
    std::fs::write(out.join("docs.html"), page)?;
    std::fs::write(out.join("docs.policy"), policy(&bundle, &start, &style))?;
    Ok(())
}

/// The dashboard, with the chart library that is kept beside it.
fn analytics_page(out: &Path) -> Result<(), Box<dyn Error>> {
    let read = |name: &str| std::fs::read_to_string(Path::new(ANALYTICS).join(name));
    let style = read("uplot.css")? + &read("page.css")?;
    let (chart, start) = (inline(&read("uplot.js")?), read("page.js")?);
    let page =
        read("page.html")?.replace("{{style}}", &style).replace("{{chart}}", &chart).replace("{{start}}", &start);
    std::fs::write(out.join("analytics.html"), page)?;
    std::fs::write(out.join("analytics.policy"), policy(&chart, &start, &style))?;
    Ok(())
}

/// A file of the archive, whose top folder is named by the version.
fn asset(archive: &mut zip::ZipArchive<Cursor<&[u8]>>, suffix: &str) -> Result<String, Box<dyn Error>> {
    for index in 0..archive.len() {
        let mut file = archive.by_index(index)?;
        if file.name()?.ends_with(suffix) {
            let mut text = String::new();
            file.read_to_string(&mut text)?;
            return Ok(text);
        }
    }
    Err(format!("Swagger UI has no {suffix}").into())
}

/// The end tag of a script ends the element even within a string of the script.
fn inline(script: &str) -> String {
    script.replace("</script", "<\\/script")
}

/// Allows a page these two scripts and this style, and no others.
fn policy(script: &str, start: &str, style: &str) -> String {
    format!(
        "default-src 'none'; script-src {} {}; style-src {}; img-src data:; connect-src 'self'; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        hash(script),
        hash(start),
        hash(style),
    )
}

fn hash(text: &str) -> String {
    format!("'sha256-{}'", STANDARD.encode(Sha256::digest(text)))
}
