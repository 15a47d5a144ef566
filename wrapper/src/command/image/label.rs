//! `soci image label`.

use soci_store::labels::Labels;

use crate::context::Context;
use crate::error::Error;
use crate::terminal;

/// Arguments of `soci image label`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  soci image label docker.io/library/redis:7 stage=test\n  soci image label docker.io/library/redis:7 stage="
)]
pub(crate) struct Args {
    /// Replace all labels.
    #[arg(short, long)]
    replace_all: bool,
    /// Image to label.
    #[arg(value_name = "NAME")]
    name: String,
    /// Labels to set; one without a value is removed.
    #[arg(value_name = "LABEL[=VALUE]")]
    labels: Vec<String>,
}

/// Runs `soci image label` and prints the labels that the image has then.
pub(crate) async fn run(args: Args, context: &Context) -> Result<(), Error> {
    let images = context.containerd().images();
    let mut image = images.get(&args.name).await?;
    let given = parse(&args.labels);
    let fields = if args.replace_all {
        vec!["labels".to_owned()]
    } else {
        given.keys().map(|key| format!("labels.{key}")).collect()
    };
    if !fields.is_empty() {
        image.labels = given;
        image = images.update(&image, &fields).await?;
    }
    let mut shown: Vec<String> = image.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    shown.sort();
    terminal::line(&shown.join(","))
}

/// `KEY=VALUE`, or `KEY` for an empty value, as `ctr` reads labels.
pub(crate) fn parse(given: &[String]) -> Labels {
    given
        .iter()
        .map(|label| match label.split_once('=') {
            Some((key, value)) => (key.to_owned(), value.to_owned()),
            None => (label.clone(), String::new()),
        })
        .collect()
}
