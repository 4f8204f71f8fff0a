//! The example runs.

#[path = "../examples/embed.rs"]
mod example;

#[test]
fn the_embedding_example_runs() {
    example::main().unwrap();
}
