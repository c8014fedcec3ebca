//! tmp
use hawser_storage::{
    Storage,
    embedded::{Embedded, Options},
};
use std::time::Instant;
#[tokio::main]
async fn main() {
    let dir = std::env::args().nth(1).unwrap();
    for _ in 0..4 {
        let t = Instant::now();
        let s = Embedded::open(&dir, Options::default()).await.unwrap();
        let o = t.elapsed();
        s.put("k", "x".into(), hawser_storage::Precondition::None).await.unwrap();
        let t = Instant::now();
        s.close().await.unwrap();
        println!("open {o:?} close {:?}", t.elapsed());
    }
}
